"""What the GPU benchmark does before it times anything, with the kernel's source run on the CPU."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sere.reroute import COUNTERS, Routing, TokenBatch
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
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    for module in ("gpu_variants", "gpu_timing"):
        monkeypatch.setattr(importlib.import_module(module), "DEVICE", "cpu")
    return importlib.import_module("gpu_reroute")


def steps_of(script: ModuleType) -> tuple[Any, dict[str, Any]]:
    """Work of one small shape and its variants; tensor operations stand in for the five launches."""
    work = script.make_work(8, 16, 4)
    steps = script.make_steps(work, SimpleNamespace(nothing=lambda: None), torch.empty(4))
    return work, steps | {"five": lambda i: steps["torch"](i).ids}


def test_the_variants_agree_with_the_plain_loops(script: ModuleType) -> None:
    """The check passes for right variants, the served one with its own settings, and each is timed."""
    work, steps = steps_of(script)
    script.check(steps, work)
    assert set(steps) == set(script.STEPS)
    assert not torch.equal(steps["served"](0).ids, steps["cuda"](0).ids)
    assert work.counters[COUNTERS.index("steps")] > 0


@pytest.mark.parametrize("name", ["cuda", "torch", "served", "five"])
def test_a_variant_that_differs_stops_the_run(script: ModuleType, name: str) -> None:
    """One wrong slot in one variant is named, and nothing is timed."""
    work, steps = steps_of(script)

    def wrong(i: int) -> Any:
        found = steps[name](i)
        if name == "five":
            return found + 1
        return found._replace(ids=found.ids + 1)

    with pytest.raises(SystemExit, match=f"{name} differs from the plain loops: .* nothing is timed"):
        script.check(steps | {name: wrong}, work)


@pytest.mark.parametrize("name", ["cuda", "torch", "served"])
def test_weights_are_checked_too(script: ModuleType, name: str) -> None:
    """Right ids with other weights are not right."""
    work, steps = steps_of(script)

    def wrong(i: int) -> Any:
        found = steps[name](i)
        return found._replace(weights=found.weights * 2)

    with pytest.raises(SystemExit, match=f"{name} differs from the plain loops"):
        script.check(steps | {name: wrong}, work)


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


@pytest.mark.parametrize("threads", [128, 256, 512, 1024])
def test_other_threads(script: ModuleType, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """A step with a number of threads launches with that number, and gives the same."""
    seen: list[int] = []

    def launch(call: Any, where: torch.device) -> None:
        seen.append(call.threads)
        shim.launch(call, where)

    work, _ = steps_of(script)
    monkeypatch.setattr(device, "launch", launch)
    batch, prepared = TokenBatch(work.ids[0], work.weights[0]), work.prepared["cuda"][0]
    step = script.with_threads(threads, lambda _: Routing(*device.run(batch, prepared._layer, None)))
    script.check_threads({str(threads): step}, work)
    assert seen == [threads]
    assert threads in script.THREADS
    assert device.launch is launch


def test_threads_that_change_the_result_stop_the_run(script: ModuleType) -> None:
    """Their number is named, and nothing is timed."""
    work, steps = steps_of(script)
    with pytest.raises(SystemExit, match="256 threads differs from the plain loops"):
        script.check_threads({"256": lambda i: steps["cuda"](i + 1)}, work)


def test_a_driver_that_says_nothing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clock and driver are None where they cannot be had; no figure is lost for it."""

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    timing = importlib.import_module("gpu_timing")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(subprocess, "run", missing)
    assert timing.driver_says("clocks.sm") is None
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="1980 MHz\n"))
    assert timing.driver_says("clocks.sm") == "1980 MHz"
