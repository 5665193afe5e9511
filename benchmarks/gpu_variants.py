"""The variants of a re-routing step that the GPU benchmark times, and their check against the plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reroute_shapes import make_batches, make_similarities
from sere.config import RerouteConfig
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer
from sere.reroute.backends.cuda import device as launching
from sere.reroute.backends.cuda.launch import Launch
from sere.reroute.constants import LAYER_BUDGET
from sere.similarity.layer import LayerSimilarity

LAYERS, BATCHES, THRESHOLD = 8, 8, 0.5
DEVICE = "cuda"
COLD = ("cold", "nothing cold")
# The rows' heaviest experts alone, as published; and how an engine calls it.
PUBLISHED = {"active_experts": 0}
SERVED = {"active_experts": "auto", "merge": "distinct"}
Step = Callable[[int], Any]


@dataclass(frozen=True)
class Work:
    """Rotating batches and layers of one shape.

    Attributes:
        batches: On the CPU, for the plain loops.
        ids: The batches' ids on the device, int32.
        weights: The batches' weights on the device, float32.
        similarity: Per layer, on the device.
        prepared: Per variant its layers; those of ``reference`` and ``served reference`` are on the CPU.
        budget: A budget for each row, for ``served``.
        counters: For ``served``.
    """

    batches: list[TokenBatch]
    ids: list[Tensor]
    weights: list[Tensor]
    similarity: list[Tensor]
    prepared: dict[str, list[PreparedLayer]]
    budget: Tensor
    counters: Tensor


def make_work(T: int, E: int, K: int) -> Work:
    """Return rotating batches and layers of one shape; some experts are popular."""
    similarity = make_similarities(LAYERS, E)
    batches = [TokenBatch(*pair) for pair in make_batches(BATCHES, T, E, K)]
    settings: dict[str, tuple[dict[str, Any], str]] = {
        "cuda": ({"backend": "cuda"} | PUBLISHED, DEVICE),
        "served": ({"backend": "cuda"} | SERVED, DEVICE),
        "torch": ({"backend": "torch"} | PUBLISHED, DEVICE),
        "reference": ({"backend": "reference"} | PUBLISHED, "cpu"),
        "served reference": ({"backend": "reference"} | SERVED, "cpu"),
    }
    prepared = {
        name: [_prepare(matrix, changes, device, K) for matrix in similarity]
        for name, (changes, device) in settings.items()
    }
    return Work(
        batches,
        [batch.topk_ids.to(DEVICE) for batch in batches],
        [batch.topk_weights.to(DEVICE) for batch in batches],
        [matrix.to(DEVICE) for matrix in similarity],
        prepared,
        torch.full((T,), LAYER_BUDGET, dtype=torch.int32, device=DEVICE),
        torch.zeros(len(COUNTERS), dtype=torch.int64, device=DEVICE),
    )


def _prepare(matrix: Tensor, changes: dict[str, Any], device: str, K: int) -> PreparedLayer:
    config = RerouteConfig.from_mapping({"threshold": THRESHOLD} | changes)
    return prepare_layer(LayerSimilarity(matrix), config, top_k=K, device=device)


class Baseline:
    """The two kernels of ``baseline.cu``, compiled for the device at hand."""

    def __init__(self) -> None:
        from cuda.core import Device, Program, ProgramOptions

        major, minor = torch.cuda.get_device_capability()
        Device(torch.cuda.current_device()).set_current()
        source = Path(__file__).with_name("baseline.cu").read_text(encoding="utf-8")
        options = ProgramOptions(arch=f"sm_{major}{minor}", std="c++17")
        code = Program(source, "c++", options).compile("cubin")
        self.search, self.empty = code.get_kernel("serial_search"), code.get_kernel("nothing")

    def five_launches(self, ids: Tensor, similarity: Tensor, S: int) -> Tensor:
        """Zero, cast, scatter, serial search, cast back."""
        E = len(similarity)
        primary = torch.zeros(E, dtype=torch.bool, device=ids.device)
        wide = ids.long()
        primary.index_fill_(0, wide[:, :S].reshape(-1), True)
        found = torch.empty_like(wide)
        blocks = -(-ids.numel() // 256)
        kernel_args = (
            wide.data_ptr(),
            primary.data_ptr(),
            similarity.data_ptr(),
            found.data_ptr(),
            ids.numel(),
            E,
        )
        self._put(self.search, blocks, 256, *kernel_args, THRESHOLD)
        return found.int()

    def nothing(self) -> None:
        """One empty launch."""
        self._put(self.empty, 1, 32)

    @staticmethod
    def _put(kernel: Any, blocks: int, threads: int, *kernel_args: Any) -> None:
        from cuda.core import LaunchConfig, launch

        from sere.reroute.backends.cuda.device import stream_of

        stream = stream_of(torch.cuda.current_stream().cuda_stream)
        launch(stream, LaunchConfig(grid=blocks, block=threads), kernel, *kernel_args)


def spare_buffer() -> Tensor:
    """Return a buffer of twice the device's L2 cache."""
    size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 * 2**20)
    return torch.empty(2 * int(size), dtype=torch.uint8, device=DEVICE)


def make_steps(work: Work, baseline: Baseline, spare: Tensor) -> dict[str, Step]:
    """Return the variants; each takes the number of the step and uses that step's batch and layer."""

    def routed(backend: str) -> Step:
        prepared = work.prepared[backend]
        return lambda i: prepared[i % LAYERS].route(
            TokenBatch(work.ids[i % BATCHES], work.weights[i % BATCHES])
        )

    def after_filling(step: Step) -> Step:
        return lambda i: (spare.fill_(1), step(i))[1]

    steps: dict[str, Step] = {
        "cuda": routed("cuda"),
        "served": _served(work),
        "five": lambda i: baseline.five_launches(work.ids[i % BATCHES], work.similarity[i % LAYERS], 1),
        "torch": routed("torch"),
        "nothing": lambda _: baseline.nothing(),
    }
    cold = {"cold": after_filling(steps["cuda"]), "nothing cold": after_filling(steps["nothing"])}
    return steps | cold | {"fill": after_filling(lambda _: None)}


def _served(work: Work) -> Step:
    """Return the step as an engine calls it: a budget for each row, counters, and the layer's settings."""
    prepared = work.prepared["served"]
    return lambda i: prepared[i % LAYERS].route(
        TokenBatch(work.ids[i % BATCHES], work.weights[i % BATCHES], work.budget), work.counters
    )


def check(steps: dict[str, Step], work: Work) -> None:
    """Stop unless all variants give what the plain loops give, for every batch and layer.

    Ids and weights must be equal bit by bit; the published form of five launches gives ids only.

    Raises:
        SystemExit: A variant differs.
    """
    for i in range(max(LAYERS, BATCHES)):
        batch = work.batches[i % BATCHES]
        expected = work.prepared["reference"][i % LAYERS].route(batch)
        budgeted = batch._replace(row_budgets=work.budget.cpu())
        wanted = {
            "cuda": expected, "torch": expected,
            "served": work.prepared["served reference"][i % LAYERS].route(budgeted),
        }  # fmt: skip
        for name, routing in wanted.items():
            if not all(torch.equal(a.cpu(), b) for a, b in zip(steps[name](i), routing, strict=True)):
                _refuse(name)
        if not torch.equal(steps["five"](i).cpu(), expected.ids):
            _refuse("five")


def check_threads(variants: dict[str, Step], work: Work) -> None:
    """Stop unless every number of threads gives what the plain loops give.

    Raises:
        SystemExit: One differs.
    """
    expected = work.prepared["reference"][0].route(work.batches[0])
    for threads, step in variants.items():
        if not torch.equal(step(0).ids.cpu(), expected.ids):
            _refuse(f"{threads} threads")


def _refuse(name: str) -> None:
    raise SystemExit(f"{name} differs from the plain loops: run make gpu-test; nothing is timed")


def with_threads(threads: int, step: Step) -> Step:
    """Return a step whose launches have another number of threads in each block."""
    real = launching.launch

    def changed(call: Launch, device: torch.device) -> None:
        real(call._replace(threads=threads), device)

    def run(i: int) -> Any:
        launching.launch = changed
        try:
            return step(i)
        finally:
            launching.launch = real

    return run
