"""``sere.tune`` from Python: what it takes, what it gives, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import sere
from sere.defaults import TABLE
from sere.errors import ConfigError, DataError, InputError
from sere.table import SimilarityTable
from sere.tune import run, work
from tests.support.checkpoints import save_checkpoint
from tests.support.tuning import PROMPTS, Breaking, question_file, routed_table

QUICK: dict[str, Any] = {
    "tiers": {"mine": {"max_kl": 0.3}}, "batch_sizes": [4], "max_new_tokens": 6, "max_prompts": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its table beside the weights."""
    path = save_checkpoint(tmp_path_factory.mktemp("model"))
    routed_table(AutoModelForCausalLM.from_pretrained(path)).save(path / TABLE)
    return path


def test_a_checkpoint_is_tuned_by_its_path(folder: Path, tmp_path: Path) -> None:
    """With its own tokenizer and table, on the prompts of a file; the file of the table stays as it is."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    before = (folder / TABLE).read_bytes()
    found = sere.tune(folder, prompts=prompts, **QUICK)
    assert list(found.table.tiers) == ["mine"]
    assert found.record["plan"]["prompts"]["file"] == "prompts.txt"
    assert (folder / TABLE).read_bytes() == before
    found.table.save(tmp_path / "tuned.sere")
    assert SimilarityTable.load(tmp_path / "tuned.sere").tiers == found.table.tiers


def test_a_model_in_memory_is_tuned(folder: Path) -> None:
    """On a list of texts, with the table beside its weights; the same as by its path."""
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mine = sere.tune(model, tokenizer, PROMPTS, **QUICK).table.tiers["mine"]
    assert (
        mine.active_experts == sere.tune(folder, prompts=PROMPTS, **QUICK).table.tiers["mine"].active_experts
    )
    with pytest.raises(InputError, match="expected the model's tokenizer, got None"):
        sere.tune(model, prompts=PROMPTS, **QUICK)


def test_points_need_questions(folder: Path, tmp_path: Path) -> None:
    """A file of questions gives both the prompts and the right answers."""
    questions = question_file(tmp_path / "questions.jsonl")
    wanted = QUICK | {"tiers": {"mine": {"max_loss": 5}}}
    found = sere.tune(folder, questions=questions, **wanted).table.tiers["mine"]
    assert found.evidence["goal"] == {"kind": "loss", "value": 5}
    with pytest.raises(ConfigError, match="needs questions"):
        sere.tune(folder, prompts=PROMPTS, **wanted)


@pytest.mark.parametrize(
    ("tiers", "text"),
    [
        ({"mine": {"max_k1": 0.1}}, "tier mine: unknown goal 'max_k1'.*max_kl"),
        ({"mine": 0.1}, "tier mine: expected one goal, such as"),
        ({"mine": {"max_kl": 0.1, "speedup": 2}}, "expected one goal"),
        ({"mine": {"max_kl": -1}}, "expected a kl above 0, got -1"),
        ({"a b": {"max_kl": 1}}, "expected a name of letters"),
    ],
    ids=["unknown", "bare number", "two", "negative", "name"],
)
def test_goals_are_checked(folder: Path, tiers: Any, text: str) -> None:
    """Before the model is loaded; the text says what was expected."""
    with pytest.raises(ConfigError, match=text):
        sere.tune("no/such/folder", prompts=PROMPTS, tiers=tiers)


def test_a_model_writes_its_own_prompts(folder: Path) -> None:
    """Where none are given: as many as are used, and the same for the same seed."""
    found = [sere.tune(folder, **QUICK, seed=seed).record["plan"] for seed in (0, 0, 1)]
    assert found[0]["prompts"] == {"written_by": "the model", "count": 10}
    assert found[0]["prompts_digest"] == found[1]["prompts_digest"] != found[2]["prompts_digest"]


def test_an_interrupted_run_does_not_write_other_prompts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sampled once is kept: a second time, rounding might give other texts."""
    with monkeypatch.context() as patch:
        patch.setattr(Breaking, "left", 2)
        patch.setattr(work, "Work", Breaking)
        with pytest.raises(KeyboardInterrupt):
            sere.tune(folder, work_dir=tmp_path / "work", **QUICK)
    monkeypatch.setattr(run, "write_prompts", lambda *_, **__: pytest.fail("written again"))
    found = sere.tune(folder, work_dir=tmp_path / "work", **QUICK)
    assert found.record["plan"]["prompts"] == {"written_by": "the model", "count": 10}


def test_a_model_that_ends_its_texts_at_once_writes_too_few_prompts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said how many there are, and how many are needed."""
    monkeypatch.setattr(run, "write_prompts", lambda *_, **__: ["one", "two"])
    with pytest.raises(DataError, match=r"prompts: expected at least 8, .*, got 2"):
        sere.tune(folder, **QUICK)


def test_a_table_is_needed(tmp_path: Path) -> None:
    """A model without one is refused with what to do."""
    path = save_checkpoint(tmp_path)
    with pytest.raises(
        InputError, match=r"tuning needs a similarity table, .*; make one with sere calibrate"
    ):
        sere.tune(path, prompts=PROMPTS, **QUICK)
