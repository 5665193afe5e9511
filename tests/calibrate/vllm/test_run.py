"""Calibrating in vLLM up to the start of its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.calibrate.vllm import run
from sere.errors import EngineFailure
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import refused
from tests.support.damage import change_json


def test_a_model_type_that_only_vllm_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that ``sere doctor`` names for it reaches the engine, which chooses the dtype itself."""
    started: list[tuple[Path, dict[str, Any]]] = []

    def start(path: Path, **options: Any) -> None:
        started.append((path, options))
        raise EngineFailure("no engine in this test")

    monkeypatch.setattr(run, "in_process_engine", start)
    monkeypatch.setattr("sere.integrations.vllm.start.versions.check_installed", lambda: "0.32.0")
    path = change_json(save_checkpoint(tmp_path) / "config.json", model_type="alien_moe")
    assert refused(capsys, "calibrate", path, "--engine", "vllm").endswith("no engine in this test")
    ((named, options),) = started
    assert named == path
    assert options["max_num_seqs"] == 128
    assert "dtype" not in options
