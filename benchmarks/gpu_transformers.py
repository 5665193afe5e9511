"""Decode Qwen3-30B-A3B's 48 layers with Transformers on a GPU: off against the recommended setting.

    python benchmarks/gpu_transformers.py                          a GPU of 80 GB; some minutes
    python benchmarks/gpu_transformers.py --shape tiny --rows 2    tries the script on a CPU

Random weights are made on the device: which values they have does not change how long a step takes. Experts
run as ``grouped_mm``, the cache is static, and a step is one CUDA graph; where it cannot be captured, the
record says why, and steps are timed one by one. ``off`` has no hooks of ours. Each replay decodes other
random tokens. Blocks of the two settings take turns. One JSON line a batch size goes to ``--out`` as soon as
it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

import sere
from sere.bench.shapes import WEIGHT_STD
from sere.bench.target import random_model, random_table, random_tokens
from sere.bench.timing import spread, synchronize, turns
from sere.files import append_json_line
from sere.integrations.transformers.inputs import cache_argument
from sere.provenance import provenance

PROMPT, ROUNDS = 32, 5
RESULTS = Path(__file__).parent / "results" / "gpu_transformers.jsonl"
Step = Callable[[int], None]


class Decoding:
    """One batch size under one setting: a static cache after a prompt, and a step that can be repeated.

    Attributes:
        reason: Why the step is no CUDA graph, or None where it is one.
    """

    def __init__(self, model: Any, B: int, steps: int) -> None:
        from transformers import StaticCache

        prompt = random_tokens(model, B, PROMPT)
        self.tokens = random_tokens(model, B, 64, seed=1)
        # A block's steps, one before it, and those of a capture.
        self._cache = StaticCache(config=model.config, max_cache_len=PROMPT + steps + 8)
        self._model, self._given = model, cache_argument(model, self._cache)
        self._input = self.tokens[:, :1].clone()
        # Every step is told the same position, right behind the prompt.
        self._position = torch.full((B, 1), PROMPT, device=model.device)
        with torch.no_grad():
            model(input_ids=prompt, use_cache=True, logits_to_keep=1, **self._given)
            self._forward()
        self._graph: torch.cuda.CUDAGraph | None = None
        self.reason: str | None = "no CUDA device here"
        if model.device.type == "cuda":
            self._capture()

    def _forward(self) -> Tensor:
        position = {"position_ids": self._position, "cache_position": self._position[0]}
        logits: Tensor = self._model(input_ids=self._input, use_cache=True, **position, **self._given).logits
        return logits.argmax(-1)

    @torch.no_grad()
    def _capture(self) -> None:
        try:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):
                for _ in range(2):
                    self._forward()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._out = self._forward()
        except Exception as error:
            self.reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            torch.cuda.synchronize()
        else:
            self._graph, self.reason = graph, None

    def rewind(self) -> None:
        """Forget all tokens behind the prompt; newer caches count what they hold."""
        for layer in self._cache.layers:
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length.fill_(PROMPT)

    @torch.no_grad()
    def step(self, index: int) -> None:
        """Decode one token of each row."""
        column = index % self.tokens.shape[1]
        self._input.copy_(self.tokens[:, column : column + 1])
        if self._graph is None:
            self._forward()
        else:
            self._graph.replay()


def block_ms(step: Step, steps: int, device: torch.device) -> float:
    """Return the mean time of a step in one block, in ms; the first step is not timed."""
    step(0)
    synchronize(device)
    started = time.perf_counter()
    for index in range(1, steps + 1):
        step(index)
    synchronize(device)
    return (time.perf_counter() - started) * 1e3 / steps


def measure(model: Any, table: Any, B: int, steps: int) -> dict[str, Any]:
    """Return both settings' times, experts per layer, and why a step is no graph."""
    with ExitStack() as stack:
        # ``off`` is captured before there is a hook: its graph has none of our launches.
        off = Decoding(model, B, steps)
        handle = stack.enter_context(sere.apply(model, table))
        on = Decoding(model, B, steps)
        handle.reset_stats()
        samples: dict[str, list[float]] = {"off": [], "recommended": []}
        ways: dict[str, Decoding] = {"off": off, "recommended": on}
        for number in range(ROUNDS + 1):
            for name in turns(list(ways), number):
                handle.enabled = name == "recommended"
                ways[name].rewind()
                took = block_ms(ways[name].step, steps, model.device)
                if number > 0:
                    samples[name].append(took)
        layers = handle.stats()
    found: dict[str, Any] = {}
    for name, values in samples.items():
        one = spread(values)
        found[name] = {"tpot_ms": one.p50, "p20": one.p20, "p80": one.p80, "not_a_graph": ways[name].reason}
    found["recommended"]["distinct_before"] = statistics.fmean(layer.distinct_before for layer in layers)
    found["recommended"]["distinct_after"] = statistics.fmean(layer.distinct_after for layer in layers)
    found["speedup"] = found["off"]["tpot_ms"] / found["recommended"]["tpot_ms"]
    return found


def make_model(shape: str, layers: int | None, device: str) -> Any:
    """Return the model; weights are spread so that tokens choose different experts."""
    model = random_model(shape, layers=layers, device=device, experts_implementation="grouped_mm")
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.data.normal_(0, WEIGHT_STD)
    return model


def row_of(B: int, result: dict[str, Any]) -> list[Any]:
    """Return the table's row for one batch size."""
    off, on = result["off"], result["recommended"]
    graph = "no" if off["not_a_graph"] or on["not_a_graph"] else "yes"
    experts = (on["distinct_before"], on["distinct_after"])
    return [B, off["tpot_ms"], on["tpot_ms"], on["p20"], on["p80"], *experts, graph, result["speedup"]]


HEADERS = ["B", "off ms", "recommended ms", "p20", "p80", "experts", "after", "graph", "speedup"]


def main() -> None:
    """Measure every batch size that fits the time, the middle ones first; print the table last."""
    parser = argparse.ArgumentParser(description="Transformers with re-routing off and on, on a GPU.")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="a name of sere.bench.shapes")
    parser.add_argument("--layers", type=int, help="number of layers; all if not given")
    parser.add_argument("--rows", type=int, nargs="+", default=(32, 8, 64, 16, 128, 4, 1))
    parser.add_argument("--steps", type=int, default=32, help="decode steps per block")
    parser.add_argument("--seconds", type=float, default=400, help="no batch size is begun after this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    started, device = time.perf_counter(), "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.shape != "tiny":
        raise SystemExit("no CUDA device here: nothing to time (--shape tiny tries the script on a CPU)")
    model = make_model(arguments.shape, arguments.layers, device)
    table, rows = random_table(model, factors=True), []
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.2f}e9 weights on {device}")
    for B in arguments.rows:
        if time.perf_counter() - started > arguments.seconds:
            print(f"B={B}: left out, the time is up")
            continue
        result = measure(model, table, B, arguments.steps)
        config = {"shape": arguments.shape, "B": B, "steps": arguments.steps, "prompt": PROMPT}
        record = {
            "benchmark": "gpu_transformers",
            "unit": "ms_per_token",
            "settings": result,
            "config": config,
        }
        append_json_line(arguments.out, {**record, **provenance()})
        rows.append(row_of(B, result))
    print(torch.cuda.get_device_name() if device == "cuda" else "no GPU: the numbers mean nothing")
    print(tabulate(sorted(rows), HEADERS, floatfmt=".2f"))


if __name__ == "__main__":
    main()
