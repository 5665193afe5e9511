"""An interrupted run continues after its last finished layer and ends with the same table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sere.calibrate import calibrate
from sere.calibrate.layerwise.runner import LayerRunner
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder
from sere.errors import InputError
from tests.support.calibration import by_layers_of, char_tokenizer, save_tiny, some_tokens

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8
OPTIONS: dict[str, Any] = {"max_tokens": 100, "seq_len": 16, "progress": False}


class _StopHere(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def _stop_after(monkeypatch: pytest.MonkeyPatch, layers: int, *, before_manifest: bool) -> None:
    finish = WorkFolder.finish

    def stopping(self: WorkFolder, layer: int, states: Any) -> None:
        if before_manifest and layer == layers:
            raise _StopHere
        finish(self, layer, states)
        if not before_manifest and layer == layers - 1:
            raise _StopHere

    monkeypatch.setattr(WorkFolder, "finish", stopping)


# Killed right behind a finished layer, and behind a layer's work but before the manifest names it.
@pytest.mark.parametrize("before_manifest", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_interrupted_run_goes_on_and_ends_equal(
    layers: int, before_manifest: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed behind layer k computes only the layers from k on, and its table is the same.

    It stays in the folder until whoever asked for it has saved it: the same call returns it again.
    """
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4)
    whole = calibrate(path, char_tokenizer(), TEXTS, low_memory=False, sensitivity=False, **OPTIONS)
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    with monkeypatch.context() as patch:
        _stop_after(patch, layers, before_manifest=before_manifest)
        with pytest.raises(_StopHere):
            calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    loaded: list[int] = []
    original = Skeleton.loaded
    monkeypatch.setattr(
        Skeleton, "loaded", lambda self, index: (loaded.append(index), original(self, index))[1]
    )
    resumed = calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    assert loaded == list(range(layers, 4))
    assert resumed.fingerprint == whole.fingerprint
    again = calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    assert loaded == list(range(layers, 4))
    assert again.fingerprint == whole.fingerprint


def test_run_killed_within_a_layer_repeats_that_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states half written when a run was killed are not taken for whole ones."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=3)
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    run, calls = LayerRunner.run, []

    def stopping(self: LayerRunner, index: int, *tensors: Any) -> torch.Tensor:
        calls.append(index)
        if calls == [0, 0, 1, 1]:  # the second of two batches of the second layer
            raise _StopHere
        return run(self, index, *tensors)

    monkeypatch.setattr(LayerRunner, "run", stopping)
    with pytest.raises(_StopHere):
        calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    assert (tmp_path / "work" / "states-0002.bin").stat().st_size > 0
    resumed = calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    assert calls == [0, 0, 1, 1, 1, 1, 2, 2]
    whole = calibrate(path, char_tokenizer(), TEXTS, low_memory=False, sensitivity=False, **OPTIONS)
    assert resumed.fingerprint == whole.fingerprint


def test_work_folder_holds_one_layers_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers are done, the folder holds the hidden states behind the last one only."""
    path = save_tiny(tmp_path, "qwen3_moe", num_hidden_layers=4)
    _stop_after(monkeypatch, 3, before_manifest=True)
    with pytest.raises(_StopHere):
        by_layers_of(path, tmp_path / "work", "frobenius")
    states = sorted(file.name for file in (tmp_path / "work").glob("states-*"))
    assert states == ["states-0003.bin"]
    assert (tmp_path / "work" / "states-0003.bin").stat().st_size == some_tokens().num_tokens * 32 * 4


def _interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    path = save_tiny(tmp_path, "qwen3_moe")
    arguments: dict[str, Any] = {"tokenizer": char_tokenizer(), "work_dir": tmp_path / "work"} | OPTIONS
    with monkeypatch.context() as patch:
        _stop_after(patch, 1, before_manifest=False)
        with pytest.raises(_StopHere):
            calibrate(path, low_memory=True, texts=TEXTS, **arguments)
    return path, arguments


def test_folder_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, texts or weights do not continue an interrupted run: the error names what differs."""
    path, arguments = _interrupted(tmp_path, monkeypatch)
    with pytest.raises(
        InputError, match=r"with other settings: batch_size was 8, now 4; repeat the original"
    ):
        calibrate(path, low_memory=True, texts=TEXTS, **(arguments | {"batch_size": 4}))
    with pytest.raises(InputError, match="with other settings: metrics was projection, now "):
        calibrate(path, low_memory=True, texts=TEXTS, metric="cosine", **arguments)
    with pytest.raises(InputError, match="with other settings: the texts or the tokenizer differ; repeat"):
        calibrate(path, low_memory=True, texts=TEXTS[1:], **arguments)
    shard = next(path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match="with other settings: the checkpoint's files differ; repeat"):
        calibrate(path, low_memory=True, texts=TEXTS, **arguments)


def test_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    """A folder that holds something else is not written to."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").touch()
    with pytest.raises(InputError, match="expected an empty folder or that of an interrupted calibration"):
        WorkFolder(tmp_path / "work", {})


def test_damaged_states_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states cut short are not continued with: the error names sizes and what to do."""
    path, arguments = _interrupted(tmp_path, monkeypatch)
    states = next((tmp_path / "work").glob("states-*"))
    states.write_bytes(states.read_bytes()[:-4])
    with pytest.raises(
        InputError, match=r"expected 12800 bytes of hidden states, found 12796; delete the folder"
    ):
        calibrate(path, low_memory=True, texts=TEXTS, **arguments)
