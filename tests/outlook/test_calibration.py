"""Which ways of calibrating fit a machine, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sere.outlook import Unprepared, calibration, ways_to_calibrate
from sere.outlook.calibration import chance, seconds_to_calibrate, seconds_to_write_texts
from sere.policies.base import LayerShape
from sere.step_time import Ceilings, StepWeights

GIB = 2**30
WEIGHTS = StepWeights(4 * GIB, 9e6, 2, 2 * GIB, 4.5e6)
FOUND = Unprepared(
    Path("model"), None, True, "has it", None, (LayerShape(0, 128, 8), LayerShape(1, 128, 8)), WEIGHTS,
    7 * GIB,
    "bfloat16", None, False, True, 128 * 9e6,
)  # fmt: skip


def open_ways(found: Unprepared) -> list[str]:
    return [way.name for way in ways_to_calibrate(found) if way.is_open]


@pytest.fixture(autouse=True)
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "installed_version", lambda _: "0.32.0")


def memory(monkeypatch: pytest.MonkeyPatch, size: float | None) -> None:
    monkeypatch.setattr(calibration, "available_memory", lambda: size)


def test_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model needs more than weights, layer by layer two layers; unknown memory excludes no way."""
    memory(monkeypatch, 10 * GIB)
    assert open_ways(FOUND) == ["whole", "layer by layer", "vllm"]
    memory(monkeypatch, 9 * GIB)
    assert open_ways(FOUND) == ["layer by layer"]
    memory(monkeypatch, 2 * GIB)
    assert open_ways(FOUND) == []
    memory(monkeypatch, None)
    assert open_ways(FOUND) == ["whole", "layer by layer", "vllm"]


def test_a_quantized_model_is_not_read_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command itself would refuse."""
    memory(monkeypatch, 100 * GIB)
    ways = {way.name: way for way in ways_to_calibrate(replace(FOUND, quantization="fp8"))}
    assert ways["layer by layer"].why_not == "it is quantized (fp8)"
    assert ways["whole"].is_open
    assert ways["vllm"].is_open


def test_a_model_that_only_vllm_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is calibrated in vLLM, if it is installed and has the architecture."""
    memory(monkeypatch, 100 * GIB)
    alien = replace(FOUND, transformers="does not know it")
    assert open_ways(alien) == ["vllm"]
    assert open_ways(replace(alien, vllm=False, vllm_detail="does not have it")) == []
    monkeypatch.setattr(calibration, "installed_version", lambda _: None)
    assert [way.why_not for way in ways_to_calibrate(alien)][2] == "vLLM is not installed here"


def test_time_is_arithmetic_of_every_expert() -> None:
    """Two operations a parameter and token; texts take a step of 128 rows for each 128 tokens."""
    ceilings = Ceilings(1e10, 1e12)
    parameters = WEIGHTS.rest_params + 256 * WEIGHTS.expert_params
    assert seconds_to_calibrate(FOUND, ceilings, tokens=1000) == 2 * 1000 * parameters / 1e12
    once, twice = (seconds_to_write_texts(FOUND, ceilings, tokens=count) for count in (128, 256))
    assert once is not None
    assert twice == 2 * once
    assert once > WEIGHTS.read(127) / 1e10
    assert seconds_to_calibrate(replace(FOUND, weights=None), ceilings) is None


def test_experts_by_chance() -> None:
    """K of one row; all in the end."""
    assert chance(128, 8, 1) == pytest.approx(8)
    assert chance(128, 8, 8) == pytest.approx(51.6, abs=0.1)
    assert chance(4, 8, 1) == 4
