"""The time of a decode step from bytes, arithmetic and two ceilings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sere.step_time import Ceilings, StepWeights, step_seconds
from sere.step_time.predict import OVERLAP

WEIGHTS = StepWeights(rest_bytes=400, expert_bytes=20.0, layers=2, rest_params=200, expert_params=10.0)
CPU = Ceilings(bytes_per_s=100.0, flops_per_s=1000.0)


def test_on_a_cpu_the_rest_adds_up_and_experts_overlap() -> None:
    """Reading and computing of other weights are added; those of the experts are joined by a p-norm."""
    # Rest: 4 s to read, 2 rows * 400 operations = 0.8 s. Experts: 2 * 20 * 5 bytes = 2 s, 2 * 2 * 10 * 25 = 1 s.
    own = (2.0**OVERLAP + 1.0**OVERLAP) ** (1 / OVERLAP)
    assert step_seconds(WEIGHTS, CPU, rows=2, experts=5, pairs=25) == pytest.approx(4 + 0.8 + own)


def test_on_a_gpu_the_longer_counts() -> None:
    """Reading and computing go on at the same time."""
    gpu = replace(CPU, overlaps=True)
    assert step_seconds(WEIGHTS, gpu, rows=2, experts=5, pairs=25) == pytest.approx(6.0)
    assert step_seconds(WEIGHTS, gpu, rows=20, experts=5, pairs=25) == pytest.approx(9.0)


@pytest.mark.parametrize("overlaps", [False, True], ids=["cpu", "gpu"])
def test_fewer_experts_and_pairs_are_never_slower(overlaps: bool) -> None:
    """The time grows with rows, experts and pairs."""
    ceilings = replace(CPU, overlaps=overlaps)

    def seconds(rows: int, experts: float, pairs: float) -> float:
        return step_seconds(WEIGHTS, ceilings, rows=rows, experts=experts, pairs=pairs)

    assert seconds(8, 4, 32) <= seconds(8, 8, 32)
    assert seconds(8, 8, 16) <= seconds(8, 8, 32)
    assert seconds(4, 8, 32) <= seconds(8, 8, 32)
    assert seconds(8, 0, 0) > 0
