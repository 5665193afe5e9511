"""The benchmark of re-routing on a CPU times nothing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reroute

pytestmark = pytest.mark.checkout


def test_backends_agree_and_are_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each backend at each number of rows and setting has one record, with unit, machine and shape."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["reroute.py", "--quick", "--out", str(out)])
    reroute.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    cases = [(one["config"]["settings"], one["config"]["T"], one["config"]["backend"]) for one in records]
    assert cases == [
        (label, T, name) for label in reroute.SETTINGS for T in reroute.ROWS for name in reroute.BACKENDS
    ]
    assert {one["unit"] for one in records} == {"us_per_call"}
    assert all(one["machine"]["cpu"] and 0 < one["p20"] <= one["median"] <= one["p80"] for one in records)
    assert "median, µs per call" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["ids", "weights"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_backend_that_differs_stops_the_run(backend: str, changed: str) -> None:
    """It is named, whether its ids or its weights are wrong, and nothing is timed."""

    class Wrong:
        def __init__(self, right: Any) -> None:
            self.right = right

        def route(self, batch: Any) -> Any:
            found = self.right.route(batch)
            return found._replace(**{changed: getattr(found, changed) + 1})

    layers = reroute.prepare(8, 2, {"active_experts": 3})
    batch = reroute.TokenBatch(*reroute.make_batches(1, 4, 8, 2)[0])
    reroute.check(layers, batch)
    with pytest.raises(SystemExit, match=f"{backend} differs from the plain loops"):
        reroute.check(layers | {backend: Wrong(layers[backend])}, batch)
