"""What the GPU benchmark does before it times anything, with the kernel's source run on the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sere.reroute import TokenBatch
from sere.reroute.backends.cuda import device
from tests.support.shim import backend as shim
from tests.support.shim.build import COMPILER, NO_COMPILER

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_reroute.py"
pytestmark = [
    pytest.mark.usefixtures("shim_backend"),
    pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER),
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_reroute", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_reroute", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module


def steps_of(script: ModuleType) -> tuple[Any, dict[str, Any]]:
    """Work of one small shape and its variants; tensor operations stand in for the five launches."""
    work = script.make_work(8, 16, 4)
    steps = script.make_steps(work, SimpleNamespace(nothing=lambda: None), torch.empty(4))
    return work, steps | {"five": lambda i: steps["torch"](i).ids}


def test_the_variants_agree(script: ModuleType) -> None:
    """The check passes for right variants, and stops the run where the served one alone is wrong."""
    work, steps = steps_of(script)
    script.check(steps, work)
    assert set(steps) == set(script.STEPS)
    assert not torch.equal(steps["served"](0).ids, steps["cuda"](0).ids)
    assert work.counters[0] > 0
    with pytest.raises(SystemExit, match="the variants disagree"):
        script.check(steps | {"served": steps["cuda"]}, work)


def test_cold_memory(script: ModuleType) -> None:
    """The cold variants fill the buffer first; the filling's time goes off turn by turn."""
    work, spare = script.make_work(8, 16, 4), torch.zeros(4)
    steps = script.make_steps(work, SimpleNamespace(nothing=lambda: spare.clone()), spare)
    assert steps["nothing cold"](0).tolist() == [1.0] * 4
    assert torch.equal(steps["cold"](3).ids, steps["cuda"](3).ids)
    samples = {"cuda": [3.0, 4.0], "cold": [45.0, 47.0], "nothing cold": [42.0, 43.0], "fill": [40.0, 41.0]}
    left = script.without_filling(samples)
    assert left == samples | {"cold": [5.0, 6.0], "nothing cold": [2.0, 2.0]}


def test_the_table(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row ends with the target's verdict, and the record's line holds all variants."""
    monkeypatch.setattr(script, "gpu_versions", dict)
    result = {name: {"median": 2.0, "p20": 1.0, "p80": 3.0} for name in script.STEPS}
    row = script.row_of("model", 64, 128, 8, result)
    assert row[:5] == ["model", 128, 8, 64, 2.0]
    assert row[-2:] == [1.0, "met (3.0)"]
    script.record(tmp_path / "out.jsonl", "model", (64, 128, 8), None, result)
    assert set(json.loads((tmp_path / "out.jsonl").read_text())["variants"]) == set(script.STEPS)


def test_other_threads(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with a number of threads launches with that number, and gives the same."""
    seen: list[int] = []

    def launch(call: Any, where: torch.device) -> None:
        seen.append(call.threads)
        shim.launch(call, where)

    work, steps = steps_of(script)
    expected = steps["torch"](0).ids
    monkeypatch.setattr(device, "launch", launch)
    prepared = work.prepared["cuda"][0]

    batch = TokenBatch(work.ids[0], work.weights[0])

    def step(_: int) -> Any:
        return device.run(batch, prepared._layer, None)

    for threads in script.THREADS:
        assert torch.equal(script.with_threads(threads, step)(0)[0], expected)
    assert tuple(seen) == script.THREADS
    assert device.launch is launch


def test_a_driver_that_says_nothing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clock and driver are None where they cannot be had; no figure is lost for it."""

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(subprocess, "run", missing)
    assert script.driver_says("clocks.sm") is None
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="1980 MHz\n"))
    assert script.driver_says("clocks.sm") == "1980 MHz"
