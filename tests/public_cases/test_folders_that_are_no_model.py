"""What people give in place of a checkpoint: each error says what it is and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sere.cli import main
from tests.support.checkpoints import save_checkpoint


def _gguf(path: Path) -> Path:
    (path / "model-q4.gguf").touch()
    (path / "model.safetensors").unlink()
    return path


def _gguf_file(path: Path) -> Path:
    (path / "model-q4.gguf").touch()
    return path / "model-q4.gguf"


def _adapter(path: Path) -> Path:
    for file in path.iterdir():
        file.unlink()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "mill/moe"}))
    return path


def _no_config(path: Path) -> Path:
    (path / "config.json").unlink()
    return path


def _broken_config(path: Path) -> Path:
    (path / "config.json").write_text("{'model_type': 'qwen3_moe'}")
    return path


def _broken_generation_config(path: Path) -> Path:
    (path / "generation_config.json").write_text("{")
    return path


def _no_tokenizer(path: Path) -> Path:
    for file in path.glob("tokenizer*"):
        file.unlink()
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_gguf, "GGUF weights are packed in a format without experts modules; give the original checkpoint"),
        (
            _gguf_file,
            "GGUF weights are packed in a format without experts modules; give the original checkpoint",
        ),
        (_adapter, "holds an adapter (adapter_config.json) of mill/moe; merge it into that model first"),
        (_no_config, "has no config.json: give a folder that save_pretrained wrote"),
        (lambda path: path / "config.json", "expected a checkpoint folder, got the file"),
        (lambda path: path.parent, "found one in checkpoint inside it; give one of these folders"),
        (_broken_config, "config.json is not JSON"),
        (_broken_generation_config, "generation_config.json is not JSON"),
        (_no_tokenizer, "has no tokenizer that can be loaded; put the files of the model's tokenizer there"),
    ],
)
def test_it_is_said_what_it_is_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], text: str
) -> None:
    """One line and exit code 2."""
    path = make(save_checkpoint(tmp_path))
    capsys.readouterr()
    assert main(["generate", str(path), "--prompt", "a"]) == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1
