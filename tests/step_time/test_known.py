"""Ceilings that were measured are kept for servers on the same machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sere.step_time import Ceilings, known, known_ceilings, remember

MEASURED = Ceilings(2e10, 3e11, dtype="bfloat16", threads=2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_last_is_known() -> None:
    """Of this device and dtype; nothing is known before, or of others."""
    assert known_ceilings("cpu", "bfloat16") is None
    remember(MEASURED)
    remember(replace(MEASURED, dtype="float32", bytes_per_s=1.0))
    assert known_ceilings("cpu", "bfloat16") == MEASURED
    remember(replace(MEASURED, flops_per_s=1e11))
    assert known_ceilings("cpu", "bfloat16") == replace(MEASURED, flops_per_s=1e11)
    assert known_ceilings("cuda", "bfloat16") is known_ceilings("cpu", "float16") is None


def test_another_machine_with_the_same_home_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor is part of what they hold for."""
    remember(MEASURED)
    monkeypatch.setattr(known, "describe_processor", lambda _: "another processor")
    assert known_ceilings("cpu", "bfloat16") is None


@pytest.mark.parametrize("text", ["", "[1]", "{"], ids=["empty", "a list", "cut off"])
def test_a_damaged_file_is_as_none(folder: Path, text: str) -> None:
    """And is replaced by the next measurement."""
    folder.mkdir()
    (folder / "ceilings.json").write_text(text)
    assert known_ceilings("cpu", "bfloat16") is None
    remember(MEASURED)
    assert known_ceilings("cpu", "bfloat16") == MEASURED


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept then."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "file"))
    remember(MEASURED)
    assert known_ceilings("cpu", "bfloat16") is None
