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
    # Rest: 400 bytes are 4 s, 32 rows of 400 operations 12.8 s. Experts: 2 * 20 * 5 bytes are 2 s. Each of
    # the 5 experts has 16 rows, so 2.5 blocks on average, of which a fifth of 8 rows is the same for all.
    rows = 0.8 * 80 + 0.2 * 8 * 12.5
    own = (2.0**OVERLAP + (2 * 2 * 10 * rows / 1000) ** OVERLAP) ** (1 / OVERLAP)
    assert step_seconds(WEIGHTS, CPU, rows=32, experts=5, pairs=80) == pytest.approx(4 + 12.8 + own)


def test_few_rows_cost_as_much_as_a_block() -> None:
    """Other weights of one row take as long as of 16, and an expert's block is never empty."""

    def seconds(rows: int, experts: float, pairs: float) -> float:
        return step_seconds(WEIGHTS, CPU, rows=rows, experts=experts, pairs=pairs)

    assert seconds(1, 0, 0) == seconds(16, 0, 0) < seconds(17, 0, 0)
    # With all of the reading for nothing: as many pairs in fewer blocks are faster.
    free = replace(CPU, bytes_per_s=1e30)
    spread, together = (step_seconds(WEIGHTS, free, rows=16, experts=count, pairs=32) for count in (32, 4))
    assert spread > together


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
