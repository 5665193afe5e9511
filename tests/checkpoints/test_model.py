"""Load a checkpoint's model whole: damaged files beside the weights, packages, quantization, noise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sere.checkpoints import load_model
from sere.errors import InputError, MissingDependency, SereError
from tests.support.damage import Tensors, change_json, change_weights, drop
from tests.support.tiny import tiny_model


def saved(folder: Path) -> Path:
    tiny_model("qwen3_moe").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", r"generation_config\.json is not JSON"),
        ("[]", r"generation_config\.json: expected a JSON object, got list"),
        ('{"max_new_tokens": -5}', "cannot be loaded: .*max_new_tokens"),
    ],
)
def test_a_damaged_generation_config_is_refused(tmp_path: Path, content: str, text: str) -> None:
    """Transformers would go on without it, and end answers elsewhere."""
    path = saved(tmp_path)
    (path / "generation_config.json").write_text(content)
    with pytest.raises(InputError, match=text):
        load_model(path)


def test_a_quantized_checkpoint_whose_package_is_missing_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which package Transformers asks for."""
    path = saved(tmp_path)
    change_json(
        path / "config.json", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32}
    )
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    with pytest.raises(MissingDependency, match=r"needs a package that is not installed: .*gptqmodel"):
        load_model(path)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "compressed-tensors", "nonsense", None])
def test_quantization_that_cannot_run_here_is_an_error_of_ours(tmp_path: Path, method: str | None) -> None:
    """Without the package or the device, or with a method that nobody knows: never a traceback."""
    path = saved(tmp_path)
    change_json(path / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(SereError, match=f"model: {path}"):
        load_model(path)


def _fp8(tensors: Tensors) -> Tensors:
    """Store projections as 8-bit numbers with a scale for each block of 128 by 128."""
    packed: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            packed[name + "_scale_inv"] = torch.ones(1, 1)
            tensor = tensor.to(torch.float8_e4m3fn)
        packed[name] = tensor
    return packed


def test_a_quantized_checkpoint_is_checked_too(tmp_path: Path) -> None:
    """A whole one is loaded, its scales are nothing unexpected; one with experts missing is refused."""
    path = change_weights(saved(tmp_path), _fp8)
    quantized = {"quant_method": "fp8", "weight_block_size": [128, 128], "dequantize": True}
    change_json(path / "config.json", quantization_config=quantized)
    expected = tiny_model("qwen3_moe").model.layers[1].mlp.experts.down_proj
    assert torch.equal(load_model(path).model.layers[1].mlp.experts.down_proj, _rounded(expected))
    with pytest.raises(InputError, match=r"2 weights of the model are not in it: .*layers\.1\.mlp\.exp"):
        load_model(drop(path, "layers.1.mlp.experts"))


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e4m3fn).float()


def test_the_dtype_is_the_checkpoints_own_or_the_one_asked_for(tmp_path: Path) -> None:
    """By the config; where that names none, by the weights."""
    tiny_model("qwen3_moe").to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32).dtype == torch.float32
    assert load_model(change_json(tmp_path / "config.json", dtype=None)).dtype == torch.bfloat16


def test_the_experts_implementation_is_the_one_asked_for(tmp_path: Path) -> None:
    """It reaches the model's config."""
    model = load_model(saved(tmp_path), experts_implementation="batched_mm")
    assert model.config._experts_implementation == "batched_mm"
    assert not model.training


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No bar and no advice of Transformers, whatever its settings; they are as before afterward."""
    from transformers.utils import logging

    path = saved(tmp_path)
    capfd.readouterr()
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(path)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == bar
    with pytest.raises(InputError):
        load_model(change_json(path / "config.json", vocab_size=64))
    assert logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
