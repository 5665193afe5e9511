"""Checkpoints of which something is missing: no command runs on random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sere.cli import main
from tests.support.checkpoints import save_checkpoint
from tests.support.damage import change_json, drop

COMMANDS = (
    ["calibrate", "MODEL", "--texts", "TEXTS", "--out", "OUT"],
    ["calibrate", "MODEL", "--texts", "TEXTS", "--out", "OUT", "--low-memory"],
    ["calibrate", "MODEL", "--metric", "weights", "--out", "OUT"],
    ["generate", "MODEL", "--prompt", "a"],
    ["bench", "MODEL", "--table", "TABLE", "--batch-size", "2"],
    ["eval", "MODEL", "--table", "TABLE", "--prompts", "TEXTS"],
)


def refused_by_all(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command says what is missing, in one line, and writes no table."""
    folder = path.parent
    (folder / "texts.txt").write_text("The quick brown fox jumps over the lazy dog. " * 100)
    places = {
        "MODEL": path, "TEXTS": folder / "texts.txt", "OUT": folder / "out.safetensors",
        "TABLE": folder / "table.safetensors",
    }  # fmt: skip
    for command in COMMANDS:
        options = ["--max-tokens", "128"] if "--texts" in command else []
        assert main([str(places.get(word, word)) for word in command] + options) == 2, command
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(lines) == 1, command
        assert text in lines[0], command
    assert not places["OUT"].exists()


def test_one_layers_experts_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are named; before, all but calibrate --low-memory ran on random ones."""
    path = drop(save_checkpoint(tmp_path), "layers.1.mlp.experts.")
    text = "2 weights of the model are not in it: model.layers.1.mlp.experts.down_proj, "
    refused_by_all(path, text, capsys)


def test_one_file_of_the_weights_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download that was cut off between two files: the missing one is named."""
    from transformers import AutoModelForCausalLM

    path = save_checkpoint(tmp_path)
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(path, max_shard_size="40KB")
    (path / "model.safetensors").unlink()
    last = sorted(path.glob("*.safetensors"))[-1]
    last.unlink()
    refused_by_all(path, f"weight files are missing: {last.name}", capsys)


def test_the_doctor_looks_at_the_weights_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint without its router is broken, and the line names what is missing."""
    path = drop(save_checkpoint(tmp_path), "layers.1.mlp.gate.weight")
    assert main(["doctor", "--no-measure", "--model", str(path)]) == 1
    assert "1 weight of the model is not in it: model.layers.1.mlp.gate.weight" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["--whole", "--low-memory"])
def test_a_config_of_fewer_layers_than_the_weights(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What of the weights is left out is said, once; before, nobody was told."""
    path = save_checkpoint(tmp_path)
    change_json(path / "config.json", num_hidden_layers=1)
    command = ["calibrate", str(path), "--metric", "weights", "--out", str(tmp_path / "out"), how]
    with caplog.at_level("WARNING", "sere"):
        assert main(command) == 0
    (line,) = caplog.messages
    assert "does not use: model.layers.1.input_layernorm.weight, " in line
    assert main(["doctor", "--no-measure", "--model", str(path)]) == 0
    assert "tensors that the model does not use: 11" in capsys.readouterr().out


def test_two_files_that_hold_other_values_for_one_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards of two releases in one folder: which value counts is not left to chance."""
    path = save_checkpoint(tmp_path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    name = "lm_head.weight"
    save_file(tensors, path / "a.safetensors", {"format": "pt"})
    places = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "a.safetensors") | {name: "b.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(places))
    save_file({name: tensors[name].clone()}, path / "b.safetensors", {"format": "pt"})
    assert main(["generate", str(path), "--prompt", "a", "--max-new-tokens", "1"]) == 0
    save_file({name: tensors[name] + 1}, path / "b.safetensors", {"format": "pt"})
    refused_by_all(path, f"a.safetensors and b.safetensors both hold {name}, with different values", capsys)


def test_weights_with_python_objects_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused without PyTorch's advice to load them unprotected."""
    path = save_checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Path}, path / "pytorch_model.bin")
    assert main(["generate", str(path), "--prompt", "a"]) == 2
    text = capsys.readouterr().err
    assert "Python objects besides tensors, which can run code and are not loaded" in text
    assert "weights_only" not in text
