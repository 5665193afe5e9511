"""About how long a timing of engines on a CPU will take, before it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from sere.bench.vllm.engine_groups import EngineGroup, Target, visiting_order
from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.engines import EnginesBench, EnginesPlan
from sere.engines.settings import is_own

# A start of vLLM on a CPU, measured: imports, model, first steps; if it compiles, that as well.
_START_S, _COMPILE_S, _LOAD_BYTES_PER_S = 20.0, 15.0, 5e8


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does in a second.

    Attributes:
        bytes_read: Bytes of weights that are read.
        operations: Multiplications and additions of a product of bfloat16 matrices of few rows.
    """

    bytes_read: float
    operations: float


def measure_rates() -> Rates:
    """Measure for about a second with torch's present number of threads."""
    big = torch.ones(2**26, device="cpu")
    rows, weight = (torch.ones(n, 2048, dtype=torch.bfloat16, device="cpu") for n in (32, 4096))
    read = big.numel() * big.element_size() / _seconds(lambda: big.sum())
    return Rates(read, 2 * 32 * weight.numel() / _seconds(lambda: rows @ weight.T))


def estimate_seconds(bench: EnginesBench, rates: Rates) -> float:
    """Return about how long a timing takes: starts, steps and prompts, by bytes read and operations.

    Args:
        bench: The timing.
        rates: The machine's.
    """
    plan, total = bench.plan, 0.0
    for engines, visits in visiting_order(bench.waves, bench.visits):
        for engine in engines:
            total += _START_S + _COMPILE_S * plan.compiled
            total += engine.target.weight_bytes / _LOAD_BYTES_PER_S
            # Each visit runs the timed blocks, and one more that counts or warms up.
            blocks = plan.rounds * len(visits) / bench.visits + len(visits)
            total += blocks * sum(
                _ways(engine, plan) * _block(load, engine.target, rates) for load in plan.loads
            )
    return total


def _ways(engine: EngineGroup, plan: EnginesPlan) -> int:
    replays = sum(map(is_own, engine.settings)) if plan.replay else 0
    # A replay is recorded in each visit before it runs.
    return max(1, len(engine.settings) + 2 * replays)


def _block(load: EngineLoad, target: Target, rates: Rates) -> float:
    """Return the seconds of one block; its rows are taken to choose experts at random."""
    share = target.subject["top_k"] / target.subject["num_experts"]
    weights: int = target.weight_bytes
    rows = load.new_tokens / load.steps
    read: float = load.steps * weights * (1 - (1 - share) ** rows) / rates.bytes_read
    computed: float = share * weights * (load.prompt_tokens + load.new_tokens) / rates.operations
    return read + computed


def _seconds(do: Callable[[], object]) -> float:
    do()
    times: list[float] = []
    for _ in range(5):
        started = perf_counter()
        do()
        times.append(perf_counter() - started)
    return median(times)
