"""The estimate of the live page: from predicted times where ceilings are known, else from bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sere.integrations.vllm.client.engine import _ceilings_of
from sere.integrations.vllm.live.estimate import estimate, speedup
from sere.step_time import Ceilings, StepWeights, remember, step_seconds
from tests.support.vllm.live import joined

WEIGHTS = StepWeights(rest_bytes=400, expert_bytes=100, layers=2, rest_params=200, expert_params=50)
CEILINGS = Ceilings(1e3, 1e4)
MEANS = {"rows": 4.0, "computed": 0.75}


def test_bytes_are_those_of_a_step() -> None:
    """The same number as that of `StepWeights` for the same bytes."""
    size = StepWeights(rest_bytes=1000, expert_bytes=70, layers=2, rest_params=500, expert_params=35)
    assert speedup([(12, 5), (10, 6)], 70, 1000) == pytest.approx(size.fewer_bytes(11, 5.5))


def test_times_are_predicted_where_ceilings_are_known() -> None:
    """By the same function as everywhere, with the slots that were computed; the basis is told."""
    layers = [(8.0, 4.0), (8.0, 4.0)]
    found = estimate(layers, joined(5), MEANS, CEILINGS)
    off = step_seconds(WEIGHTS, CEILINGS, rows=4, experts=8, pairs=8)
    on = step_seconds(WEIGHTS, CEILINGS, rows=4, experts=4, pairs=6)
    assert found["speedup"] == pytest.approx(off / on, abs=1e-4)
    assert found["basis"] == "times"
    assert "predicted times" in found["caveat"]
    by_bytes = estimate(layers, joined(5), MEANS, None)
    assert by_bytes["basis"] == "bytes"
    assert by_bytes["speedup"] == pytest.approx(WEIGHTS.fewer_bytes(8, 4), abs=1e-4)
    assert estimate(layers, joined(5) | {"rest_bytes": None}, MEANS, CEILINGS)["speedup"] is None


@pytest.mark.parametrize(
    ("layers", "expert", "rest"),
    [([], 70, 1000), ([(8, 4)], None, 1000), ([(8, 4)], 70, None), ([(0, 0)], 70, 0)],
    ids=["no layer", "no expert", "no rest", "no bytes"],
)
def test_nothing_is_claimed(layers: list[tuple[float, float]], expert: int | None, rest: int | None) -> None:
    """Without steps or sizes there is no estimate."""
    assert speedup(layers, expert, rest) is None


def test_a_server_reads_what_the_doctor_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of its device and dtype; not with quantized weights, or more workers."""
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    remember(CEILINGS)

    def config(quantization: str | None = None, world_size: int = 1, dtype: str = "torch.bfloat16") -> object:
        return SimpleNamespace(
            model_config=SimpleNamespace(quantization=quantization, dtype=dtype),
            parallel_config=SimpleNamespace(world_size=world_size),
            device_config=SimpleNamespace(device_type="cpu"),
        )

    assert _ceilings_of(config()) == CEILINGS
    assert _ceilings_of(config(quantization="fp8")) is None
    assert _ceilings_of(config(world_size=2)) is None
    assert _ceilings_of(config(dtype="torch.float16")) is None
    assert _ceilings_of(None) is None
