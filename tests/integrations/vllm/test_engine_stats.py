"""The workers' answers made one, and the line for the log."""

from __future__ import annotations

from sere.integrations.vllm.engine_stats import EngineStats, log_line


def test_log_line_of_nothing() -> None:
    """Before the first step the log line says so."""
    found = EngineStats(True, {}, 0, {"prompts": 3}, ())
    assert log_line(found) == "no step re-routed, 3 skipped"
