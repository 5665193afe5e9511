"""The word ``bundled`` in place of a model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import sere
from sere.cli import main


def test_every_command_takes_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calibrate it on texts of one's own, verify the table, look at both, generate with it."""
    texts, table = tmp_path / "texts.txt", str(tmp_path / "table.safetensors")
    texts.write_text("".join(f"add {i}+{2 * i}\nThe mill stood by the water.\n" for i in range(99)))
    size = ["--max-tokens", "512", "--seq-len", "64"]
    assert main(["calibrate", "bundled", "--texts", str(texts), "--out", table, *size]) == 0
    assert main(["table", "verify", table, "--model", "bundled"]) == 0
    assert main(["doctor", "--no-measure", "--model", "bundled", "--table", table]) == 0
    assert (
        main(["generate", "bundled", "--table", table, "--prompt", "add 1+1\n", "--max-new-tokens", "4"]) == 0
    )


def test_python_takes_it_too() -> None:
    """``sere.calibrate("bundled", ...)`` is the checkpoint of the package."""
    table = sere.calibrate("bundled", metric="weights", progress=False)
    assert table.identity.name == "abacus"
