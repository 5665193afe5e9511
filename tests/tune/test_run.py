"""A whole tuning of a tiny model: what its tiers say, what it measures, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError, DataError, InputError, TableError, TableMismatch
from sere.eval.text import score_texts
from sere.eval.user_questions import read_questions
from sere.integrations.transformers import apply
from sere.table import SimilarityTable, Tier
from sere.tune import work
from sere.tune.measure import Loss, Meter
from sere.tune.plan import Goal
from sere.tune.plans import Plan
from sere.tune.run import Tuned, tune_plan
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tuning import (
    Breaking,
    meters_made,
    question_file,
    routed_table,
    tune_plan_of,
    tuned_model,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return tuned_model()


@pytest.fixture(scope="module")
def table(model: Any) -> SimilarityTable:
    return routed_table(model)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that was not interrupted."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def tuned(model: Any, tokenizer: Any, table: SimilarityTable, kept: Path) -> Tuned:
    return tune_plan(model, tokenizer, table, tune_plan_of(), work_dir=kept, keep_work=True)


@pytest.fixture
def measurements(tuned: Tuned, kept: Path) -> int:
    """How many results that run kept."""
    assert tuned.record["tiers"]
    return len(json.loads((kept / "tuning.json").read_text())["done"])


def comparable(tuned: Tuned) -> Any:
    """Everything but the time."""
    record = json.loads(json.dumps(tuned.record))
    for part in (record, *(tier["evidence"] for tier in record["tiers"].values())):
        part["provenance"].pop("utc")
    return record


def test_tiers_keep_within_the_accepted_loss(tuned: Tuned) -> None:
    """On prompts that were not tuned on, at each batch size; more loss takes no more experts."""
    assert list(tuned.table.tiers) == ["balanced", "fast"]
    for name, accepted in (("balanced", 0.05), ("fast", 0.3)):
        tier = tuned.table.tiers[name]
        points = dict(tier.active_experts)  # type: ignore[arg-type]
        assert list(points) == [1, 2, 4, 8, 256]
        assert points[1] == 4
        assert list(points.values()) == sorted(points.values())
        assert list(tier.evidence["by_batch_size"]) == ["4", "8"]
        for rows, found in tier.evidence["by_batch_size"].items():
            assert found["kl"]["value"] <= accepted
            assert found["active_experts"] == points[int(rows)]
            assert found["experts_after"] < found["experts_before"]
    balanced, fast = (dict(tier.active_experts) for tier in tuned.table.tiers.values())  # type: ignore[arg-type]
    assert all(fast[rows] <= M for rows, M in balanced.items())
    assert sum(fast.values()) < sum(balanced.values())


def test_the_evidence_says_what_was_done(tuned: Tuned, table: SimilarityTable) -> None:
    """Accepted loss, texts of both halves with their digests, what was not measured, versions, time."""
    evidence = tuned.table.tiers["fast"].evidence
    assert evidence["goal"] == {"kind": "kl", "value": 0.3}
    assert evidence["accepted_kl"] == 0.3
    assert evidence["simulated_rows"] == [2, 256]
    halves = evidence["texts"]
    assert halves["tuning"]["digest"] != halves["held-out"]["digest"]
    assert all(half["tokens"] > 20 for half in halves.values())
    assert {"versions", "utc"} <= set(evidence["provenance"])
    assert tuned.table.fingerprint == table.fingerprint == tuned.record["table"]
    assert tuned.record["tiers"]["fast"]["evidence"] == dict(evidence)
    json.dumps(tuned.record, allow_nan=False)


def test_the_tuned_number_is_the_smallest_that_was_measured_to_do(tuned: Tuned) -> None:
    """On the tuning half; fewer experts lost more there, as far as they were measured."""
    cells = tuned.record["measured"]["4"]
    for name, accepted in (("balanced", 0.05), ("fast", 0.3)):
        found = tuned.record["tiers"][name]["evidence"]["by_batch_size"]["4"]
        chosen = found["raised_from"] or found["active_experts"]
        # Below K, the smallest, nothing is tried.
        lower = max((int(M) for M in cells if int(M) < chosen), default=None)
        assert chosen == 4 if lower is None else cells[str(lower)]["kl"]["value"] > accepted
        # With as many experts as 4 rows can choose, 16, nothing is re-routed, so nothing is measured.
        assert chosen == 16 or cells[str(chosen)]["kl"]["value"] <= accepted


def test_a_loss_is_that_of_real_decode_steps(
    model: Any, tokenizer: Any, table: SimilarityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the divergence per prompt when the held-out texts are decoded under the tier's settings."""
    seen = meters_made(monkeypatch)
    tuned = tune_plan(model, tokenizer, table, tune_plan_of(batch_sizes=[4]))
    tier, texts = tuned.table.tiers["fast"], seen[-1].texts["held-out"]
    config = tuned.table.settings(RerouteConfig(tier="fast"))
    with apply(model, table, config=replace(config, tier=None), pad_token_id=-1):
        scores = score_texts(model, texts, batch_size=4)
    found = tier.evidence["by_batch_size"]["4"]["kl"]["value"]
    # Several steps share a forward pass, so that rounding differs.
    expected = sum(one.kl for one in scores) / sum(one.tokens for one in scores)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_next", "deepseek_v3"])
def test_models_of_every_cache_are_tuned(name: str, tokenizer: Any) -> None:
    """Sliding windows, linear attention and compressed keys, too; their tiers keep within the loss."""
    model = tuned_model(name)
    plan = tune_plan_of(goals={"fast": Goal("kl", 0.3)}, batch_sizes=[4])
    found = tune_plan(model, tokenizer, routed_table(model), plan).table.tiers["fast"]
    assert found.evidence["by_batch_size"]["4"]["kl"]["value"] <= 0.3


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_an_interrupted_run_continues_to_the_same_result(
    model: Any, tokenizer: Any, table: SimilarityTable, tuned: Tuned, measurements: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, after: int,
) -> None:  # fmt: skip
    """What was finished is not measured again, and the result is that of a run without an interruption."""
    folder = tmp_path / "work"
    monkeypatch.setattr(Breaking, "left", after)
    monkeypatch.setattr(work, "Work", Breaking)
    with pytest.raises(KeyboardInterrupt) as caught:
        tune_plan(model, tokenizer, table, tune_plan_of(), work_dir=folder)
    assert folder.exists() == (after > 0)
    assert getattr(caught.value, "__notes__", []) == (
        [f"{after} finished measurements are kept in {folder}; the same command continues after them"]
        if after
        else []
    )
    monkeypatch.setattr(Breaking, "left", 1000)
    again = tune_plan(model, tokenizer, table, tune_plan_of(), work_dir=folder)
    assert comparable(again) == comparable(tuned)
    assert 1000 - Breaking.left + after == measurements
    assert not folder.exists()


def test_progress_counts_what_an_interrupted_run_finished(
    model: Any, tokenizer: Any, table: SimilarityTable, tmp_path: Path
) -> None:
    """As much work is shown in a run that continues, so that the time left is not overestimated."""
    shown: list[list[int]] = []

    @contextmanager
    def progress(_name: str, total: int) -> Iterator[Callable[[], object]]:
        ticks = [0, total]
        shown.append(ticks)

        def tick() -> None:
            ticks[0] += 1

        yield tick

    options: dict[str, Any] = {"work_dir": tmp_path / "work", "keep_work": True, "progress": progress}
    for _ in range(2):
        tune_plan(model, tokenizer, table, tune_plan_of(batch_sizes=[4]), **options)
    first, second = shown[:3], shown[3:]
    assert first == second
    assert all(0 < ticks <= total for ticks, total in shown)


def test_other_settings_are_refused_in_the_same_folder(
    model: Any, tokenizer: Any, table: SimilarityTable, tmp_path: Path
) -> None:
    """They say what differs; other tiers and batch sizes take what is there."""
    options: dict[str, Any] = {"work_dir": tmp_path / "work", "keep_work": True}
    tune_plan(model, tokenizer, table, tune_plan_of(batch_sizes=[4]), **options)
    with pytest.raises(InputError, match="other settings: max_new_tokens was 8, now 9"):
        tune_plan(model, tokenizer, table, tune_plan_of(max_new_tokens=9), **options)
    before = json.loads((tmp_path / "work" / "tuning.json").read_text())["done"]
    tune_plan(model, tokenizer, table, tune_plan_of(goals={"mine": Goal("kl", 0.1)}), **options)
    after = json.loads((tmp_path / "work" / "tuning.json").read_text())["done"]
    assert before.items() <= after.items()


def test_more_is_read_where_the_other_half_loses_more(
    model: Any, tokenizer: Any, table: SimilarityTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M is raised until the held-out loss is within the accepted one, and the evidence says from where."""
    measured = Meter.loss

    def loss(self: Meter, half: Any, rows: int, plan: Plan) -> Loss:
        found = measured(self, half, rows, plan)
        worse = 9.0 if half == "held-out" else 1.0
        return replace(found, kl=[worse * kl for kl in found.kl], before=9.0, after=8.0)

    monkeypatch.setattr(Meter, "loss", loss)
    tuned = tune_plan(model, tokenizer, table, tune_plan_of(goals={"fast": Goal("kl", 0.3)}))
    found = tuned.table.tiers["fast"].evidence["by_batch_size"]["4"]
    assert found["raised_from"] < found["active_experts"]
    assert found["kl"]["value"] <= 0.3


def test_other_tiers_stay(model: Any, tokenizer: Any, table: SimilarityTable) -> None:
    """A tier of one's own is added to those that the table has, or takes the place of its namesake."""
    old = table.with_tiers({"safe": Tier("safe", 12), "mine": Tier("mine", 3)})
    goals = {"mine": Goal("kl", 0.3)}
    found = tune_plan(model, tokenizer, old, tune_plan_of(goals=goals, batch_sizes=[4])).table.tiers
    assert list(found) == ["safe", "mine"]
    assert found["safe"].active_experts == 12
    assert found["mine"].active_experts != 3


def test_a_speedup_is_counted_in_bytes(model: Any, tokenizer: Any, table: SimilarityTable) -> None:
    """M is the largest that reads so many times fewer bytes of weights; its loss is measured all the same."""
    goals = {"quick": Goal("speedup", 1.1)}
    tuned = tune_plan(model, tokenizer, table, tune_plan_of(goals=goals, batch_sizes=[8]))
    evidence = tuned.table.tiers["quick"].evidence
    found = evidence["by_batch_size"]["8"]
    assert evidence["accepted_kl"] is None
    assert found["bytes_ratio"] == pytest.approx(1.1, abs=0.1)
    assert found["kl"]["value"] > 0
    with pytest.raises(ConfigError, match=r"can read at most \S+x fewer bytes .* got a speedup of 50"):
        tune_plan(model, tokenizer, table, tune_plan_of(goals={"quick": Goal("speedup", 50)}))


def test_a_loss_in_points_is_a_divergence_by_its_price(
    model: Any, tokenizer: Any, table: SimilarityTable, tmp_path: Path
) -> None:
    """Twice the points accept twice the divergence; the held-out questions say what is lost."""
    questions, source = read_questions(question_file(tmp_path / "questions.jsonl"))
    asked: dict[str, Any] = {"questions": questions, "prompts": [one.prompt for one in questions]}
    goals = {"a": Goal("loss", 1), "b": Goal("loss", 2)}
    plan = tune_plan_of(goals=goals, batch_sizes=[4], source=source, **asked)
    tiers = tune_plan(model, tokenizer, table, plan).table.tiers
    one, two = (tier.evidence["accepted_kl"] for tier in tiers.values())
    assert two == pytest.approx(2 * one)
    answers = tiers["a"].evidence["by_batch_size"]["4"]["answers"]
    assert answers["questions"] == 12
    assert {"share_before", "share_after", "difference"} <= set(answers)


def test_batch_sizes_that_the_prompts_cannot_fill_are_predicted(
    model: Any, tokenizer: Any, table: SimilarityTable
) -> None:
    """Twelve prompts a half fill steps of 4 and 8 rows, not of 16: its M is simulated, and said to be."""
    plan = tune_plan_of(batch_sizes=[4, 8, 16], goals={"fast": Goal("kl", 0.3)})
    evidence = tune_plan(model, tokenizer, table, plan).table.tiers["fast"].evidence
    assert list(evidence["by_batch_size"]) == ["4", "8"]
    assert evidence["simulated_rows"] == [2, 16, 256]
    with pytest.raises(InputError, match="at least 32 different ones for steps of 16 rows"):
        tune_plan(model, tokenizer, table, tune_plan_of(batch_sizes=[16]))


def test_what_cannot_be_tuned_is_refused(model: Any, tokenizer: Any, table: SimilarityTable) -> None:
    """A table of another model, one without routing, prompts that get no answer."""
    other = routed_table(tuned_model("olmoe"))
    with pytest.raises(TableMismatch):
        tune_plan(model, tokenizer, other, tune_plan_of())
    bare = SimilarityTable(table.layers, table.identity, table.metric)
    with pytest.raises(TableError, match="calibrate again"):
        tune_plan(model, tokenizer, bare, tune_plan_of())
    silent = tuned_model()
    silent.generation_config.eos_token_id = list(range(96))
    with pytest.raises(DataError, match="ends each of the 12 tuning prompts with its first token"):
        tune_plan(silent, tokenizer, table, tune_plan_of())
