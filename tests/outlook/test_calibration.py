"""Which ways of calibrating fit a machine, and what they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sere.calibrate import memory as calibrate_memory
from sere.outlook import Unprepared, calibration, ways_to_calibrate
from sere.outlook.calibration import chance, seconds_to_calibrate, seconds_to_write_texts
from sere.policies.base import LayerShape
from sere.step_time import Ceilings, StepWeights
from tests.support.gpus import pretend_gpus

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
    monkeypatch.setattr(calibrate_memory, "available_memory", lambda: size)


def test_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model needs more than weights, vLLM a cache as well, layer by layer two layers.

    Unknown memory excludes no way.
    """
    memory(monkeypatch, 12 * GIB)
    assert open_ways(FOUND) == ["whole", "layer by layer", "vllm"]
    memory(monkeypatch, 11 * GIB)
    assert open_ways(FOUND) == ["whole", "layer by layer"]
    memory(monkeypatch, 9 * GIB)
    assert open_ways(FOUND) == ["layer by layer"]
    memory(monkeypatch, 2 * GIB)
    assert open_ways(FOUND) == []
    memory(monkeypatch, None)
    assert open_ways(FOUND) == ["whole", "layer by layer", "vllm"]


def test_no_way_needs_less_than_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the model, it takes a gibibyte beside the weights, and in vLLM two for a cache."""
    memory(monkeypatch, 100 * GIB)
    tiny = replace(FOUND, num_bytes=1000, layer_bytes=100.0, weights=replace(WEIGHTS, rest_bytes=0))
    assert [way.needs for way in ways_to_calibrate(tiny)] == [GIB + 1000, GIB + 200, 3 * GIB + 1000]


def test_a_quantized_model_needs_the_memory_of_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers dequantizes it on a CPU; vLLM does not, and comes first where only it fits."""
    quantized = replace(FOUND, quantization="fp8", dequantized_bytes=14 * GIB)
    memory(monkeypatch, 20 * GIB)
    whole, layers, vllm = ways_to_calibrate(quantized)
    assert (whole.name, whole.needs, whole.fits) == ("whole", 20 * GIB, True)
    assert layers.why_not == "it is quantized (fp8)"
    assert (vllm.needs, vllm.is_open) == (12 * GIB, True)
    memory(monkeypatch, 19 * GIB)
    assert [way.name for way in ways_to_calibrate(quantized)] == ["vllm", "whole", "layer by layer"]
    assert open_ways(quantized) == ["vllm"]


def test_a_quantization_that_cannot_be_loaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model is calibrated in vLLM, however much memory there is; the reason is said."""
    memory(monkeypatch, 100 * GIB)
    ways = ways_to_calibrate(
        replace(FOUND, quantization="awq", dequantized_bytes=14 * GIB, not_loaded="it needs gptqmodel")
    )
    assert [way.name for way in ways if way.is_open] == [ways[0].name] == ["vllm"]
    assert ways[1].why_not == "Transformers cannot load its quantization (awq) here: it needs gptqmodel"


def test_a_model_that_only_vllm_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is calibrated in vLLM, if it is installed and has the architecture."""
    memory(monkeypatch, 100 * GIB)
    alien = replace(FOUND, transformers="does not know it")
    assert open_ways(alien) == ["vllm"]
    assert open_ways(replace(alien, vllm=False, vllm_detail="does not have it")) == []
    monkeypatch.setattr(calibration, "installed_version", lambda _: None)
    assert [way.why_not for way in ways_to_calibrate(alien)][2] == "vLLM is not installed here"


def on_gpus(
    monkeypatch: pytest.MonkeyPatch, *free: float, own: float = 64, build: str = "cuda", **changes: Any
) -> list[tuple[str, bool | None]]:
    """Return each way's options and whether it fits, for GPUs and own memory of so many GiB."""
    memory(monkeypatch, own * GIB)
    pretend_gpus(monkeypatch, *(round(size * GIB) for size in free))
    monkeypatch.setattr(calibration, "engine_device", lambda: build)
    ways = ways_to_calibrate(replace(FOUND, **changes), device="cuda")
    return [(way.options, way.fits) for way in ways]


WHOLE, LAYERS, VLLM = "--device cuda", "--low-memory --texts FILE --device cuda", "--engine vllm"
SHARED = f"{VLLM} --engine-option tensor_parallel_size="


def test_a_gpu_computes_what_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Transformers the first one; what does not fit it is for the CPU, in each way by itself."""
    assert on_gpus(monkeypatch, 12) == [(WHOLE, True), (LAYERS, True), (VLLM, True)]
    assert on_gpus(monkeypatch, 9, 80) == [("", True), (LAYERS, True), (f"{SHARED}2", True)]
    assert on_gpus(monkeypatch, 5) == [("", True), ("--low-memory --texts FILE", True), (VLLM, False)]
    # The machine's own memory holds the weights until they are on the GPU.
    assert on_gpus(monkeypatch, 80, own=6)[0] == ("", False)


def test_vllm_shares_a_model_among_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the fewest that hold it: 1, 2, 4, ..., by which its attention heads can be divided."""
    assert on_gpus(monkeypatch, 12, 12)[2] == (VLLM, True)
    assert on_gpus(monkeypatch, 7, 7, 7, 7)[2] == (f"{SHARED}2", True)
    assert on_gpus(monkeypatch, 3, 3, 3)[2] == (f"{SHARED}2", False)
    assert on_gpus(monkeypatch, 5, 5, 5, 5)[2] == (f"{SHARED}4", True)
    assert on_gpus(monkeypatch, 5, 5, 5, 5, attention_heads=6)[2] == (f"{SHARED}2", False)
    assert on_gpus(monkeypatch, 5, 5, attention_heads=3)[2] == (VLLM, False)
    # Shares are equal: the smallest memory counts for all.
    assert on_gpus(monkeypatch, 20, 4, attention_heads=8)[2] == (VLLM, True)
    assert on_gpus(monkeypatch, 9, 4)[2] == (f"{SHARED}2", False)
    assert on_gpus(monkeypatch, 3, build="cpu")[2] == (VLLM, True)


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
