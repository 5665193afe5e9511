"""The benchmark of steps in which nothing changes: what it says of times, and one run of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import exact_steps
from exact_steps import AGAIN, SERE, VANILLA, main, share_weights, states, summarize


def engine_of(*parameters: float) -> Any:
    """What `share_weights` sees of an engine."""
    model = torch.nn.Module()
    for index, value in enumerate(parameters):
        model.register_parameter(f"p{index}", torch.nn.Parameter(torch.full((3,), float(value))))
    return SimpleNamespace(model_runner=SimpleNamespace(model=model))


def test_steps_are_compared_with_those_beside_them() -> None:
    """The ratio is that of each step, so that slow changes of the machine cancel out."""
    vanilla = [10.0, 100.0, 40.0, 20.0, 30.0, 50.0]
    found = summarize({VANILLA: vanilla, SERE: [1.1 * one for one in vanilla], AGAIN: vanilla[::-1]})
    assert found["step_ms"][VANILLA]["p50"] == 35
    assert found["to_vanilla"][SERE] == pytest.approx({"value": 1.1, "low": 1.1, "high": 1.1})
    assert found["to_vanilla"][AGAIN] == pytest.approx({"value": 1.25, "low": 0.2, "high": 5})


def test_engines_share_their_weights_if_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterward a parameter is in memory once; other values or names are refused, by name."""
    monkeypatch.setattr(exact_steps, "worker_of", lambda engine: engine)
    first, second = engine_of(1, 2), engine_of(1, 2)
    share_weights(first, second)
    pairs = zip(*(one.model_runner.model.parameters() for one in (first, second)), strict=True)
    assert all(mine.data_ptr() == theirs.data_ptr() for mine, theirs in pairs)
    for other in (engine_of(1, 3), engine_of(1)):
        with pytest.raises(ValueError, match="p1: expected equal weights"):
            share_weights(first, other)


def test_both_states_change_nothing() -> None:
    """Either sere is off, or each row keeps all its experts."""
    assert states(4) == {"off": {"enabled": False}, "all kept": {"enabled": True, "select_top_k": 4}}


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny sizes: one record per number of rows and state, and the same numbers in a table."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    out = tmp_path / "out.jsonl"
    main(["--preset", "tiny", "--layers", "1", "--batch-size", "1", "3", "--steps", "6", "--out", str(out)])
    records = [json.loads(line) for line in out.read_text().splitlines()]
    cases = [(one["config"]["B"], one["config"]["state"]) for one in records]
    assert cases == [(1, "off"), (1, "all kept"), (3, "off"), (3, "all kept")]
    kinds = [max(one["steps"], key=one["steps"].get) for one in records]
    assert kinds == ["disabled", "protected", "disabled", "protected"]
    printed = capsys.readouterr().out
    for record in records:
        assert record["step_ms"].keys() == {VANILLA, SERE, AGAIN}
        assert f"{record['to_vanilla'][SERE]['value']:.4f}" in printed
