"""What it costs to count the uses of each expert (``count_experts``): one call of a layer, without and with.

Run ``python benchmarks/count_experts.py``; with ``--device cuda`` on a GPU, where calls are also timed as one
captured graph, as vLLM runs them. Both ways take turns in one process. First the counts are compared with
plain loops; if they differ, nothing is timed. The last line says how many tensor operations a call has more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reroute_shapes import SHAPES, make_batches, make_similarities
from sere.bench.timing import spread, synchronize, turns
from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.provenance import provenance
from sere.reroute import COUNTERS, PreparedLayer, Routing, TokenBatch, prepare_layer
from sere.reroute.expert_counts import new_counts, route_counted
from sere.similarity.layer import LayerSimilarity

ROWS = (1, 16, 64, 256)
# Calls of a turn, and turns that warm up.
CALLS, WARM_UP = 10, 2
WITHOUT, WITH = "without", "with"


def ways(layer: PreparedLayer, batch: TokenBatch, counts: Tensor) -> dict[str, Callable[[], Routing]]:
    """Return one call of a layer, without and with counting."""
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=counts.device)

    def route(given: TokenBatch) -> Routing:
        return layer.route(given, counters)

    return {WITHOUT: lambda: route(batch), WITH: lambda: route_counted(route, batch, counters, counts)}


def check(call: Callable[[], Routing], batch: TokenBatch, counts: Tensor) -> None:
    """Stop unless a call counts what plain loops count.

    Raises:
        SystemExit: It does not.
    """
    routing = call()
    expected = [[0] * counts.shape[1] for _ in range(2)]
    for row, ids, weights in ((0, batch.topk_ids, batch.topk_weights), (1, *routing)):
        for expert, weight in zip(ids.flatten().tolist(), weights.flatten().tolist(), strict=True):
            expected[row][expert] += weight != 0
    if counts.tolist() != expected:
        raise SystemExit("the counts differ from plain loops: run make test; nothing is timed")


class Operations(TorchDispatchMode):
    """Counts the tensor operations that compute something; views do not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += int(not func.is_view)
        return func(*args, **(kwargs or {}))


def operations(batch: TokenBatch, counts: Tensor) -> int:
    """Return how many tensor operations counting adds to a call: those around a router that does nothing."""
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=counts.device)
    found = Operations()
    with found:
        route_counted(lambda given: Routing(*given[:2]), batch, counters, counts)
    return int(found.count)


def captured(call: Callable[[], Routing]) -> Callable[[], None]:
    """Return a call as one replay of a captured graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return microseconds per call of each way; the ways take turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + WARM_UP):
        for name in turns(list(calls), turn):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(CALLS):
                calls[name]()
            synchronize(device)
            if turn >= WARM_UP:
                samples[name].append((time.perf_counter() - started) * 1e6 / CALLS)
    return samples


def main() -> None:
    """Check, time, print a table, and append one record per case if asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="turns of each way (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small shape, few rounds: only that it runs")
    parser.add_argument("--out", type=Path, help="append the records to this file of JSON lines")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shapes, rounds = (SHAPES[:1], 5) if arguments.quick else (SHAPES[:5], arguments.rounds)
    forms = ("eager", "graph") if device.type == "cuda" else ("eager",)
    rows, count = [], 0
    for model, E, K in shapes:
        (similarity,) = make_similarities(1, E)
        layer = prepare_layer(LayerSimilarity(similarity), RerouteConfig(), top_k=K, device=device)
        for T in ROWS:
            batch = TokenBatch(*(tensor.to(device) for tensor in make_batches(1, T, E, K)[0]))
            counts = new_counts(E, device)
            called = ways(layer, batch, counts)
            check(called[WITH], batch, counts)
            count = operations(batch._replace(row_budgets=torch.ones_like(batch.topk_ids[:, 0])), counts)
            for form in forms:
                calls = {name: captured(call) if form == "graph" else call for name, call in called.items()}
                found = measure(calls, rounds, device)
                pairs = zip(found[WITH], found[WITHOUT], strict=True)
                more = spread([after - before for after, before in pairs])
                medians = [spread(found[name]).p50 for name in (WITHOUT, WITH)]
                rows.append([model, E, K, T, layer.backend, form, *medians, more.p50, more.p20, more.p80])
                if arguments.out is not None:
                    config = {"model": model, "T": T, "K": K, "E": E, "backend": layer.backend, "form": form}
                    line: dict[str, Any] = {"benchmark": "count_experts", "unit": "us_per_call"}
                    line |= {"config": config, "without": medians[0], "with": medians[1], "more": more.p50}
                    line |= {"p20": more.p20, "p80": more.p80}
                    append_json_line(arguments.out, {**line, **provenance()})
    headers = ["shape", "E", "K", "T", "backend", "form", "without, µs", "with, µs", "more, µs", "p20", "p80"]
    print(tabulate(rows, headers, floatfmt=".1f"))
    print(f"{count} tensor operations more in a call")


if __name__ == "__main__":
    main()
