"""Where a checkpoint is calibrated: devices that are not here, what fits one, and what goes on where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.calibrate import api, calibrate, float32_products, memory
from sere.checkpoints import find_weights
from sere.errors import ConfigError, DataError, InputError
from sere.table import SimilarityTable
from tests.support.calibration import char_tokenizer, interrupt_at_sums, save_tiny
from tests.support.commands import refused, run_text
from tests.support.gpus import pretend_gpus
from tests.support.tiny import tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog."] * 8
OPTIONS: dict[str, Any] = {"max_tokens": 96, "seq_len": 16, "progress": False, "sensitivity": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save_tiny(tmp_path, "qwen3_moe")
    char_tokenizer().save_pretrained(path)
    return path


def computed_on(table: SimilarityTable) -> object:
    made: Any = table.provenance["calibration"]
    return made["device"]


def test_a_missing_device_is_named_before_any_work() -> None:
    """Even before the checkpoint is looked for."""
    with pytest.raises(ConfigError, match=r"device cuda:99: not usable here, expected cpu"):
        calibrate("nowhere", device="cuda:99")


def test_the_table_says_where_it_was_computed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model in memory, of a checkpoint in both ways, and by the command."""
    loaded = calibrate(tiny_model("qwen3_moe"), char_tokenizer(), TEXTS, **OPTIONS)
    assert computed_on(loaded) == "cpu"
    for low_memory in (False, True):
        found = calibrate(model, None, TEXTS, low_memory=low_memory, device="cpu", **OPTIONS)
        assert computed_on(found) == "cpu"
    run_text(capsys, "calibrate", model, "--device", "cpu", "--max-tokens", 96, "--seq-len", 16)
    assert computed_on(SimilarityTable.load(model / "similarity.sere")) == "cpu"


def test_what_the_command_refuses(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that is not here, and any device for vLLM, which chooses its own."""
    assert "--device cuda:99: not usable here" in refused(capsys, "calibrate", model, "--device", "cuda:99")
    line = refused(capsys, "calibrate", model, "--device", "cpu", "--engine", "vllm")
    assert "--device: only applies to --engine transformers" in line


# In sizes of the checkpoint: free on the GPU beside what a program needs, and in the machine that loads it.
@pytest.mark.parametrize(("gpu", "own", "fits"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_the_memory_of_the_device_decides(
    gpu: int, own: int, fits: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that of the machine, which holds the weights until they are on the device."""
    size = find_weights(model).num_bytes
    pretend_gpus(monkeypatch, memory.LEAST_ROOM + gpu * size)
    monkeypatch.setattr(memory, "available_memory", lambda: own * size)
    assert memory.fits_memory(model, device="cuda") is fits


def test_what_does_not_fit_the_device_is_read_layer_by_layer(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the model cannot write its texts; the text names the device."""
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(api, "check_device", lambda _: None)
    text = "because the model does not fit into the memory of cuda, or of this machine: read layer by layer"
    with pytest.raises(DataError, match=text):
        calibrate(model, device="cuda")


def test_a_model_that_is_too_large_after_all(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's error while it moves to the device becomes one that says what to do."""

    def to(_: str) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(api, "check_device", lambda _: None)
    monkeypatch.setattr(api, "load_model", lambda *_, **__: SimpleNamespace(to=to))
    text = r"device cuda: .* does not fit into its memory; choose another device, or let it be read layer by"
    with pytest.raises(InputError, match=text):
        calibrate(model, None, TEXTS, device="cuda", low_memory=False, **OPTIONS)


def test_a_run_does_not_move_between_cpu_and_gpu(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They round differently, so another kind of device is another run; another one of its kind is not."""
    work = tmp_path / "work"
    monkeypatch.setattr(float32_products, "emulates_bfloat16", lambda: False)
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, None, TEXTS, work_dir=work, low_memory=False, batch_size=2, **OPTIONS)
    monkeypatch.setattr(api, "check_device", lambda _: None)
    with pytest.raises(
        InputError, match="with other settings: device was cpu, now cuda; repeat the original"
    ):
        calibrate(model, None, TEXTS, work_dir=work, low_memory=False, batch_size=2, device="cuda", **OPTIONS)
    further = interrupt_at_sums(monkeypatch, 0)
    calibrate(model, None, TEXTS, work_dir=work, low_memory=False, batch_size=2, device="cpu:0", **OPTIONS)
    assert further == [64, 96]
