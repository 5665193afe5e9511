"""Checkpoints of which something is missing: no command runs on random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.cli import main
from tests.checkpoints import save_checkpoint
from tests.damage import drop

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
