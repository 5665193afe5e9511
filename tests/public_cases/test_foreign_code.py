"""A folder that brings its own Python code: refused at once, with the flag that would run it."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest

from sere.cli import main
from tests.support.foreign import model_with_code


@pytest.mark.parametrize("command", [["doctor", "--model"], ["generate", "--prompt", "a"], ["bench"]])
def test_the_code_of_a_folder_is_neither_run_nor_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Somebody who would answer yes is not asked; the file that the code would make is not there."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    path = model_with_code(tmp_path, tmp_path / "ran")
    assert main([*command, str(path)]) in (1, 2)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "is Python code (modeling_mill.py), which is not run; read it, and if you trust it" in shown
    assert "--trust-remote-code" in shown
    assert not (tmp_path / "ran").exists()
