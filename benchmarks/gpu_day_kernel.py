"""Kernel times at the recommended setting, decode and prompt steps: what decides on the first day on a GPU.

    python benchmarks/gpu_day_kernel.py               one shape, 16 to 2048 rows
    python benchmarks/gpu_day_kernel.py --rehearse    on a CPU, with the tests' stand-in: only the check

Variants, each called as an engine does, with a budget for each row, the number of real rows and counters:
``recommended`` (P filled up to the default M, factors of the table, distinct slots), ``mixed`` (the same,
every other row protected, as a prompt's are), ``prompt`` (the same kernel in a captured step that re-routes
nothing: no real row), ``triton`` (the recommended setting without cuda-core), ``torch`` (the same in tensor
operations). ``five`` is the published form in five launches at its own setting, ``nothing`` an empty
kernel: the floor. All are graph replays in turns. Before a shape is timed, ids and weights must be those of
the plain loops. One JSON line a shape goes to ``--out``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from gpu_timing import capture, gpu_versions, spin, summaries, time_in_turns
from gpu_variants import SERVED, THRESHOLD, Baseline, Step
from reroute_shapes import SHAPES, make_batches, make_similarities
from sere.config import RerouteConfig
from sere.files import append_json_line
from sere.integrations.vllm.tiers import PROTECTED
from sere.provenance import provenance
from sere.reroute import BACKENDS, COUNTERS, PreparedLayer, TokenBatch, prepare_layer
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET
from sere.similarity.layer import LayerSimilarity

LAYERS, BATCHES, ROUNDS = 8, 8, 20
ROWS = (64, 16, 256, 1, 2048)
STEPS = {
    "recommended": 128, "mixed": 128, "prompt": 128, "triton": 64, "torch": 8, "five": 64, "nothing": 256,
}  # fmt: skip
BACKEND = {"recommended": "cuda", "mixed": "cuda", "prompt": "cuda", "triton": "triton", "torch": "torch"}
RESULTS = Path(__file__).parent / "results" / "gpu_day_kernel.jsonl"


class Work:
    """Rotating batches and layers of one shape, on a device.

    Args:
        T: Rows.
        E: Experts.
        K: Slots per row.
        device: Where the steps run.
    """

    def __init__(self, T: int, E: int, K: int, device: str) -> None:
        self.device, self.K = device, K
        self.matrices = make_similarities(LAYERS, E)
        self.batches = [TokenBatch(*pair) for pair in make_batches(BATCHES, T, E, K)]
        self.on_device = [
            TokenBatch(batch.topk_ids.to(device), batch.topk_weights.to(device)) for batch in self.batches
        ]
        self.rows = T
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)

    def prepare(self, backend: str, device: str) -> list[PreparedLayer]:
        """Return the layers at the recommended setting."""
        config = RerouteConfig.from_mapping({"threshold": THRESHOLD, "backend": backend} | SERVED)
        return [
            prepare_layer(
                LayerSimilarity(matrix), config, top_k=self.K, scale=0.5 + matrix / 2, device=device
            )
            for matrix in self.matrices
        ]

    def announced(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a variant's budgets, ``[T]``, and number of real rows, ``[1]``, as in vLLM's worker."""
        real = 0 if name == "prompt" else self.rows
        budgets = torch.full((self.rows,), LAYER_BUDGET if real else PADDING_BUDGET, dtype=torch.int32)
        if name == "mixed":
            budgets[1::2] = PROTECTED
        return budgets, torch.tensor([real], dtype=torch.int32)

    def step(self, name: str) -> Step:
        """Return a variant's step, which uses the batch and the layer of its number."""
        layers = self.prepare(BACKEND[name], self.device)
        budgets, real = (tensor.to(self.device) for tensor in self.announced(name))
        batches = [batch._replace(row_budgets=budgets, num_tokens=real) for batch in self.on_device]
        return lambda i: layers[i % LAYERS].route(batches[i % BATCHES], self.counters)


def check(work: Work, steps: dict[str, Step]) -> None:
    """Stop unless every variant gives the ids and weights of the plain loops.

    Raises:
        SystemExit: One differs.
    """
    layers = work.prepare("reference", "cpu")
    # The plain loops take a second for a large step: two of these show what can differ.
    for i in range(2 if work.rows > 64 else LAYERS):
        for name, step in steps.items():
            budgets, real = work.announced(name)
            batch = work.batches[i % BATCHES]._replace(row_budgets=budgets, num_tokens=real)
            expected = layers[i % LAYERS].route(batch)
            if not all(torch.equal(a.cpu(), b) for a, b in zip(step(i), expected, strict=True)):
                raise SystemExit(f"{name} differs from the plain loops: run make gpu-test; nothing is timed")


def variants(work: Work) -> dict[str, Step]:
    """Return the variants that run here, by name; those of missing packages are left out with a line."""
    found = {}
    for name, backend in BACKEND.items():
        reason = BACKENDS[backend].why_not(work.device) if work.device == "cuda" else None
        if work.device == "cpu" and backend == "triton":
            reason = "Triton's interpreter is not used here"
        if reason is None:
            found[name] = work.step(name)
        else:
            print(f"{name}: left out: {reason}", file=sys.stderr)
    return found


def measure(work: Work, baseline: Baseline | None) -> dict[str, Any]:
    """Return median, p20 and p80 of each variant, in microseconds per step."""
    steps = variants(work)
    check(work, steps)
    if baseline is not None:
        matrices = [matrix.to(work.device) for matrix in work.matrices]
        steps["five"] = lambda i: baseline.five_launches(
            work.on_device[i % BATCHES].topk_ids, matrices[i % LAYERS], 1
        )
        steps["nothing"] = lambda _: baseline.nothing()
    graphs = {name: capture(step, STEPS[name]) for name, step in steps.items()}
    return summaries(time_in_turns(graphs, STEPS, ROUNDS))


def rehearse(out: Path) -> None:
    """Check the variants on the CPU, the kernel's own source by the tests' stand-in; write a record."""
    import pytest

    from sere.reroute.backends import registry

    record = registry.BackendRecord("cuda", "tests.support.shim.backend", ("cpu",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "BACKENDS", {**registry.BACKENDS, "cuda": record})
        work = Work(8, 16, 4, "cpu")
        steps = variants(work)
        check(work, steps)
    append_json_line(out, {"benchmark": "gpu_day_kernel", "rehearsed": sorted(steps), **provenance()})
    print("no GPU: checked, not timed:", ", ".join(sorted(steps)))


def main() -> None:
    """Check, time, write one record per shape and print the table last."""
    parser = argparse.ArgumentParser(description="Kernel times at the recommended setting.")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: the check alone")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.rehearse:
        rehearse(arguments.out)
        return
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to time (--rehearse checks the variants on a CPU)")
    baseline = Baseline() if BACKENDS["cuda"].why_not("cuda") is None else None
    rows = []
    name, E, K = SHAPES[3]
    for T in ROWS:
        clock, result = spin(), measure(Work(T, E, K, "cuda"), baseline)
        config = {
            "model": name,
            "T": T,
            "E": E,
            "K": K,
            "threshold": THRESHOLD,
            "served": SERVED,
            "scale": True,
        }
        record = {"benchmark": "gpu_day_kernel", "unit": "us_per_step", "variants": result, "config": config}
        versions = {"gpu_versions": gpu_versions(), "sm_clock": clock}
        append_json_line(arguments.out, {**record, **provenance(), **versions})
        rows.append([T, *(result[key]["median"] if key in result else None for key in STEPS)])
    print(torch.cuda.get_device_name(), name, "microseconds per step, warm memory")
    print(tabulate(rows, ["T", *STEPS], floatfmt=".2f"))


if __name__ == "__main__":
    main()
