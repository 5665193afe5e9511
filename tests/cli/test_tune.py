"""``sere tune``: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sere.cli import main
from sere.errors import ConfigError
from sere.eval.tasks import TASK_NAMES
from sere.step_time import Ceilings
from sere.table import SimilarityTable
from sere.tune import speed, work
from sere.tune.plan import BATCH_SIZES, LAYER_RUNS, MOST_PROMPTS, TIERS, TIERS_BY_ANSWERS, TunePlan
from tests.support.commands import refused, run_json, run_text
from tests.support.tuning import PROMPTS, Breaking, question_file, routed_table

QUICK = ("--by", "bytes", "--batch-size", 4, "--max-new-tokens", 6, "--max-prompts", 10)


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """What the help says without importing the tuning is what the tuning does."""
    assert main(["tune", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    safe, balanced, fast = (f"{goal.value:g}" for goal in TIERS.values())
    assert f"{', '.join(TIERS)} are tuned".replace(", fast", " and fast") in shown
    assert f"accept a KL of {safe}, {balanced} and {fast}" in shown
    points = [f"{goal.value:g}" for goal in TIERS_BY_ANSWERS.values()]
    assert f"sere's own tasks), {points[0]}, {points[1]} and {points[2]} points of right answers" in shown
    assert f"(default: {' '.join(map(str, BATCH_SIZES))})" in shown
    assert f"(default: {MOST_PROMPTS})" in shown
    assert f"single layers cost (default: {LAYER_RUNS})" in shown


@pytest.fixture
def table(checkpoint: Path, tmp_path: Path) -> Path:
    """A table with the router's choices."""
    path = tmp_path / "mine.sere"
    routed_table(AutoModelForCausalLM.from_pretrained(checkpoint)).save(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def test_three_tiers_are_stored_in_the_table(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path, tmp_path: Path
) -> None:
    """By default; beside it, the picture, the record and the page that were asked for, and nothing else."""
    before = SimilarityTable.load(table)
    picture, record, page = (tmp_path / f"tuning.{kind}" for kind in ("png", "json", "html"))
    argv = ["tune", checkpoint, "--table", table, "--prompts", prompts, *QUICK]
    out, err = run_text(capsys, *argv, "--picture", picture, "--record", record, "--report", page)
    after = SimilarityTable.load(table)
    assert sorted(after.tiers) == ["balanced", "fast", "safe"]
    assert after.fingerprint == before.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.sere", "prompts.txt", "tuning.png", "tuning.json", "tuning.html",
    }  # fmt: skip
    assert list(json.loads(record.read_text())["tiers"]) == ["safe", "balanced", "fast"]
    for part in ("safe", "balanced", "fast", "fewer", "predicted from the simulated error"):
        assert part in out
    assert [f"wrote {path}" in err for path in (table, record, picture, page)] == [True] * 4
    shown = page.read_text(encoding="utf-8")
    assert all(
        part in shown for part in ("The tuning: loss over experts", "Layers: what each may read", table.name)
    )
    assert "tuning: done" in err


def test_no_prompts_are_needed(capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path) -> None:
    """The model writes them; the line that serves the result is printed at the end."""
    out, err = run_text(capsys, "tune", checkpoint, "--table", table, *QUICK)
    assert "balanced" in out
    assert f"no --prompts: {checkpoint} writes its own, sampled at temperature 1" in err
    settings = json.dumps({"sere": {"table": str(table)}})
    assert f"serve it with: vllm serve {checkpoint} --additional-config '{settings}'" in err.splitlines()


def test_one_tier_is_added(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path, tmp_path: Path
) -> None:
    """The table that was read stays; the one that is written has the tier, and settings find it."""
    out = tmp_path / "new" / "tuned.sere"
    before = table.read_bytes()
    argv = ["tune", checkpoint, "--table", table, "--prompts", prompts, *QUICK, "--out", out]
    record = run_json(capsys, *argv, "--max-kl", 0.3, "--tier", "mine")
    assert list(SimilarityTable.load(out).tiers) == list(record["tiers"]) == ["mine"]
    assert table.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_the_other_commands_take_the_tier(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path
) -> None:
    """``table show`` shows what was measured, and ``eval`` reads as few experts under the tier's name."""
    argv = ["tune", checkpoint, "--table", table, "--prompts", prompts, *QUICK]
    record = run_json(capsys, *argv, "--max-kl", 0.3, "--tier", "mine")
    found = record["tiers"]["mine"]["evidence"]["by_batch_size"]["4"]
    out, _ = run_text(capsys, "table", "show", table)
    assert f"{found['experts_before']:.1f} > {found['experts_after']:.1f}" in out
    assert f"{found['kl']['value']:.4f}" in out
    evaluated = run_json(
        capsys, "eval", checkpoint, "--table", table, "--prompts", prompts, "--batch-size", 4,
        "--setting", "sere:tier=mine", "--max-new-tokens", 6,
    )  # fmt: skip
    _, case = evaluated["cases"]
    assert case["experts"]["distinct_after"] <= found["active_experts"] < case["experts"]["distinct_before"]


def test_points_of_right_answers(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, tmp_path: Path
) -> None:
    """The questions say what is lost, with its interval."""
    questions = question_file(tmp_path / "questions.jsonl")
    argv = ["tune", checkpoint, "--table", table, "--questions", questions, *QUICK]
    out, _ = run_text(capsys, *argv, "--max-loss", 5)
    assert "points of right answers lost" in out


def test_an_interruption_leaves_the_table_and_what_is_finished(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exit code 130 and one line that says where; the same command continues and ends as if never stopped."""
    argv = ["tune", checkpoint, "--table", table, "--prompts", prompts, *QUICK]
    before = table.read_bytes()
    monkeypatch.setattr(Breaking, "left", 3)
    monkeypatch.setattr(work, "Work", Breaking)
    assert main([*map(str, argv)]) == 130
    err = capsys.readouterr().err
    assert f"3 finished measurements are kept in {table}.tuning; the same command continues" in err
    assert table.read_bytes() == before
    monkeypatch.setattr(Breaking, "left", 1000)
    found = run_json(capsys, *argv)
    assert not Path(f"{table}.tuning").exists()
    table.write_bytes(before)
    monkeypatch.undo()
    again = run_json(capsys, *argv)
    assert found["measured"] == again["measured"]
    assert {name: tier["active_experts"] for name, tier in found["tiers"].items()} == {
        name: tier["active_experts"] for name, tier in again["tiers"].items()
    }


def test_other_settings_are_refused_after_an_interruption(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They name what differs."""
    argv = ["tune", checkpoint, "--table", table, "--prompts", prompts, "--batch-size", 4, "--by", "bytes"]
    monkeypatch.setattr(Breaking, "left", 1)
    monkeypatch.setattr(work, "Work", Breaking)
    assert main([*map(str, argv)]) == 130
    capsys.readouterr()
    monkeypatch.undo()
    assert "seed was 0, now 1" in refused(capsys, *argv, "--seed", 1)


def test_the_table_alone_says_the_error(
    capsys: pytest.CaptureFixture[str], table: Path, tmp_path: Path
) -> None:
    """Without weights: for each batch size, the relative error over M, and that the model must say more."""
    before = table.read_bytes()
    argv = ["tune", tmp_path / "no-model", "--table", table, "--simulate-only", "--batch-size", 8]
    out, _ = run_text(capsys, *argv)
    assert "relative to dropping all of it" in out
    found = run_json(capsys, *argv)["simulated"]
    assert list(found) == ["2", "8", "256"]
    errors = [cell["error"] for cell in found["8"].values()]
    assert errors == sorted(errors, reverse=True)
    assert [cell["pairs"] for cell in found["8"].values()] == [8 * 4] * len(errors)
    assert table.read_bytes() == before


def test_a_model_with_the_bundled_tokenizer_continues_the_tasks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundled: Path, table: Path
) -> None:
    """Without any texts, such a model is given questions of all tasks, whatever its sizes."""

    def stop(_args: object, _source: object, plan: TunePlan, _work: object) -> None:
        raise ConfigError(f"asked {sorted({question.task for question in plan.questions})}")

    monkeypatch.setattr("sere.cli.tune._tune", stop)
    line = refused(capsys, "tune", tiny_bundled, "--table", table)
    assert f"asked {sorted(TASK_NAMES)}" in line


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--max-loss", 1), "--max-loss: is counted in right answers"),
        (("--prompts", "PROMPTS", "--tier", "fast"), "--tier: names the tier of --max-kl"),
        (("--prompts", "PROMPTS", "--max-loss", 1), "--max-loss: is counted in right answers"),
        (("--prompts", "PROMPTS", "--max-kl", 0), "expected a number above 0"),
        (("--prompts", "PROMPTS", "--speedup", 1), "expected a number above 1"),
        (("--prompts", "PROMPTS", "--batch-size", 1), "expected a whole number of at least 2"),
        (("--prompts", "PROMPTS", "--speedup", 40, "--by", "bytes"), "can read at most"),
        (("--prompts", "PROMPTS", "--speedup", 40), "faster on this machine, by its predicted time"),
        (("--prompts", "PROMPTS", "--out", "PROMPTS"), "is read by the same command"),
        (("--prompts", "missing.txt"), "no file missing.txt"),
        (("--prompts", "PROMPTS", "--max-kl", 1, "--speedup", 2), "not allowed with"),
        (("--prompts", "PROMPTS", "--max-kl", 1, "--tier", "a b"), "expected a name of letters"),
        (("--prompts", "PROMPTS", "--uniform", "--layer-runs", 4), "which --uniform leaves out"),
    ],
    ids=["points of its own texts", "tier alone", "points of prompts", "no kl", "no speedup", "one row",
         "too few bytes", "too fast", "overwrites", "missing", "two goals", "name", "layers"],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, table: Path, prompts: Path,
    more: tuple[object, ...], text: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With exit code 2 and one line; the table stays as it is."""
    monkeypatch.setattr(speed, "measure", lambda *_: Ceilings(1e9, 1e9))
    before = table.read_bytes()
    given = [prompts if one == "PROMPTS" else one for one in more]
    assert text in refused(capsys, "tune", checkpoint, "--table", table, *given)
    assert table.read_bytes() == before
    assert not Path(f"{table}.tuning").exists()
