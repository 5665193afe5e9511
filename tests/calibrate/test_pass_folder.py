"""An interrupted run over all layers at once continues after its last kept batch, to the same table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sere
from sere.calibrate import api
from sere.calibrate.pass_folder import PassFolder
from sere.errors import InputError
from sere.table import SimilarityTable
from tests.support.calibration import ALL_METRICS, char_tokenizer, interrupt_at_sums, save_tiny

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8
# Batches of 48 tokens, and windows of 20: some tokens wait for their window when sums are kept.
OPTIONS: dict[str, Any] = {
    "metric": [name for name in ALL_METRICS if name != "weights"],
    "metric_parameters": {"cka": {"window": 20}},
    "max_tokens": 250, "seq_len": 16, "batch_size": 3, "progress": False, "low_memory": False,
}  # fmt: skip


def calibrated(path: Path, texts: Any = TEXTS, **options: Any) -> dict[str, SimilarityTable]:
    return sere.calibrate(path, char_tokenizer(), texts, **OPTIONS | options)


def check_equal(found: dict[str, SimilarityTable], expected: dict[str, SimilarityTable]) -> None:
    """Check that tables are equal bit by bit, with their samples of routing and what the halves say."""
    for name, other in expected.items():
        mine = found[name]
        assert (mine.fingerprint, mine.data_digest) == (other.fingerprint, other.data_digest)
        assert mine.provenance["calibration"] == other.provenance["calibration"]
        assert mine.routing is not None
        assert other.routing is not None
        for index, ids in other.routing.ids.items():
            assert torch.equal(mine.routing.ids[index], ids)
            assert torch.equal(mine.routing.weights[index], other.routing.weights[index])
            torch.testing.assert_close(
                mine.routing.energy[index], other.routing.energy[index], rtol=0, atol=0, equal_nan=True
            )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path, "qwen3_moe")


# Before and after the middle, where the first half is taken, and after the last batch.
@pytest.mark.parametrize("nth", [2, 4, 6])
def test_an_interrupted_run_goes_on_and_ends_equal(
    nth: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that are done are not run again; sums stay, because the tables are not saved yet."""
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        done = interrupt_at_sums(patch, nth)
        with pytest.raises(KeyboardInterrupt) as caught:
            calibrated(model, work_dir=work)
    assert done == [48, 96, 144, 192, 240, 250][:nth]
    assert caught.value.__notes__ == [
        f"{done[-1]} of 250 tokens are done (kept in {work}); the same command continues after them"
    ]
    assert [path.name for path in work.glob("sums-*")] == [f"sums-{done[-1]}-0.safetensors"]
    further = interrupt_at_sums(monkeypatch, 0)
    # The way stays that of the interrupted run, however much memory there is now.
    monkeypatch.setattr(api, "fits_memory", lambda _: False)
    check_equal(calibrated(model, work_dir=work, low_memory=None), calibrated(model))
    assert further == [96, 144, 192, 240, 250][nth - 1 :]
    assert [path.name for path in work.glob("sums-*")] == ["sums-250-0.safetensors"]


def test_sums_that_are_not_recorded_do_not_count(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between the sums and the word that they are complete goes on with those before."""
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 3, recorded=False)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, work_dir=tmp_path / "work")
    further = interrupt_at_sums(monkeypatch, 0)
    check_equal(calibrated(model, work_dir=tmp_path / "work"), calibrated(model))
    assert further == [144, 192, 240, 250]


def test_what_the_model_wrote_is_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not sampled again; without sums, the note speaks of the texts alone."""
    whole = calibrated(model, None)
    work = tmp_path / "work"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "collect_in_memory", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            calibrated(model, None, work_dir=work)
    assert caught.value.__notes__ == [
        f"what the model wrote is kept in {work}; the same command continues with it"
    ]
    with pytest.raises(InputError, match="with other settings: max_tokens was 250, now 200; seed was 0, now"):
        calibrated(model, None, work_dir=work, max_tokens=200, seed=3)
    monkeypatch.setattr(api, "write_tokens", interrupt)
    check_equal(calibrated(model, None, work_dir=work), whole)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"batch_size": 2}, "batch_size was 3, now 2; repeat the original"),
        ({"seed": 1}, "the texts or the tokenizer differ|seed was 0, now 1"),
        ({"dtype": torch.bfloat16}, r"dtype was not given, now torch\.bfloat16"),
        ({"low_memory": True}, "way was the whole model, now layer by layer; repeat"),
        ({"texts": TEXTS[1:]}, "the texts or the tokenizer differ"),
        ({"texts": None}, "the texts or the tokenizer differ"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_other_settings_are_named(
    changed: dict[str, Any], text: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of other tokens, or computed otherwise, are not continued."""
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, work_dir=tmp_path / "work")
    monkeypatch.setattr(api, "load_model", None)  # nothing is loaded before
    with pytest.raises(InputError, match=f"with other settings: .*(?:{text})"):
        calibrated(model, **{"texts": TEXTS, "work_dir": tmp_path / "work"} | changed)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_sums_are_refused(
    damage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text names the file and says what to do."""
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, work_dir=work)
    (sums,) = work.glob("sums-*")
    if damage == "cut":
        sums.write_bytes(sums.read_bytes()[:-8])
    else:
        sums.unlink()
    with pytest.raises(
        InputError, match=rf"sums-48-0\.safetensors: expected what .* delete the folder {work}"
    ):
        calibrated(model, work_dir=work)


def test_sums_of_all_tokens_are_due_if_some_are_kept(tmp_path: Path) -> None:
    """So nothing after the pass repeats its last minute; a run that is shorter than that keeps none."""
    work = PassFolder(tmp_path, {})
    assert not work.is_due(8, 8)
    work.finish(4, 8)
    assert not work.is_due(6, 8)
    assert work.is_due(8, 8)
    work.finish(8, 8)
    assert not work.is_due(8, 8)
