"""Batches for the re-routing tests: what engines really send, and what they could."""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.config.active_experts import may_be_zero
from sere.reroute import COUNTERS, Routing, reroute
from sere.reroute.constants import LAYER_BUDGET
from sere.reroute.limits import layer_limits
from sere.reroute.raw_layer import KernelConfig, RawLayer
from tests.support.shim.build import COMPILER, NO_COMPILER

NO_DEVICE = "no CUDA device here: `make gpu-test` runs this on a machine that has one"
NO_INTERPRETER = "tests/reroute/test_triton.py runs this, in a process with Triton's interpreter"
# Triton decides when it is imported whether its programs are interpreted, on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_on_device = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_DEVICE)]
# "shim" is the cuda backend with its kernel's own source run on the CPU, "cuda" the same on a device;
# "interpreted" is the triton backend on the CPU, "triton" the same on a device.
BACKENDS = (
    "reference",
    "torch",
    "cpu",
    pytest.param("shim", marks=pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)),
    pytest.param("cuda", marks=_on_device),
    pytest.param("interpreted", marks=pytest.mark.skipif(not INTERPRETED, reason=NO_INTERPRETER)),
    pytest.param("triton", marks=_on_device),
)
FAST = BACKENDS[1:]


def name_of(backend: str) -> str:
    """What ``backend=`` calls a backend of the tests."""
    return {"shim": "cuda", "interpreted": "triton"}.get(backend, backend)


def device_of(backend: str) -> torch.device:
    """Where the tensors of a backend live."""
    return torch.device("cuda" if backend in {"cuda", "triton"} else "cpu")


@dataclass
class Case:
    """One call: the batch, the similarity and the options."""

    ids: Tensor
    weights: Tensor
    similarity: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, backend: str, **changes: Any) -> tuple[Routing, dict[str, int]]:
        """Route, at M = 0 unless the options say otherwise; return the routing and the counters by name."""
        device = device_of(backend)
        counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)
        always = {"counters": counters, "backend": name_of(backend), "active_experts": 0}
        options = always | self.options | changes
        options = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()
        }
        routing = reroute(self.ids.to(device), self.weights.to(device), self.similarity, **options)
        return Routing(routing.ids.cpu(), routing.weights.cpu()), counted(counters)


def counted(counters: Tensor) -> dict[str, int]:
    """Counters by name."""
    return dict(zip(COUNTERS, counters.tolist(), strict=True))


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(weights: Tensor) -> Tensor:
    """Weights as the integers that have their bits."""
    return weights.view(_BITS[weights.element_size()])


def assert_equal_bits(actual: Tensor, expected: Tensor, came: Tensor) -> None:
    """Weights agree bit for bit; any NaN will do where it was computed, but one that came keeps its bits."""
    both_nan = actual.isnan() & expected.isnan()
    assert torch.equal(bits(actual)[~both_nan], bits(expected)[~both_nan])
    passed = both_nan & came.isnan()
    for weights in (actual, expected):
        assert torch.equal(bits(weights)[passed], bits(came)[passed])


def assert_same_bits(case: Case, backend: str = "shim", **changes: Any) -> Routing:
    """A backend gives ids, weights and counters as the reference does, bit for bit; dtypes are kept."""
    expected, expected_counts = case.run("reference", **changes)
    actual, counts = case.run(backend, **changes)
    assert actual.ids.dtype == case.ids.dtype
    assert actual.weights.dtype == case.weights.dtype
    assert torch.equal(actual.ids, expected.ids)
    assert_equal_bits(actual.weights, expected.weights, case.weights)
    assert counts == expected_counts
    return actual


def similarity_matrix(E: int, seed: int, *, levels: int | None = None) -> Tensor:
    """A similarity matrix; with ``levels``, values repeat, so that ties are broken all the time."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(E, E, generator=generator)
    if levels is not None:
        matrix = (matrix * levels).floor() / levels
    return matrix.fill_diagonal_(1.0)


def raw_layer(similarity: Tensor, *, threshold: float = 0.0, **settings: Any) -> RawLayer:
    """A layer as a backend prepares it; S = 1 and M = 0 unless ``settings`` say otherwise."""
    config = RerouteConfig(**{"active_experts": 0, "threshold": threshold} | settings)
    limits = layer_limits(config.for_layer(0), len(similarity))
    keep = torch.zeros(len(similarity), dtype=torch.bool)
    sensitivity = torch.ones(len(similarity))
    return RawLayer(similarity, threshold, limits, keep, sensitivity, None, KernelConfig.of(config))


def batch(
    T: int,
    K: int,
    E: int,
    seed: int,
    *,
    order: str = "router",
    ties: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Distinct ids a row and positive weights, descending (``router``), shuffled or ascending."""
    generator = torch.Generator().manual_seed(seed)
    # Some experts are more popular, as in a trained router: batches overlap.
    logits = torch.randn(T, E, generator=generator) + 1.5 * torch.randn(E, generator=generator)
    weights, ids = logits.softmax(dim=1).topk(K, dim=1)
    if ties:
        weights = (weights * 4).ceil() / 4
    if order == "ascending":
        ids, weights = ids.flip(1), weights.flip(1)
    elif order == "shuffled":
        shuffle = torch.rand(T, K, generator=generator).argsort(dim=1)
        ids, weights = ids.gather(1, shuffle), weights.gather(1, shuffle)
    return ids.to(torch.int32), weights.to(dtype)


def forget_some(similarity: Tensor, seed: int, *, share: float) -> Tensor:
    """Make a share of the similarities unknown, in some rows all of them."""
    E = len(similarity)
    generator = torch.Generator().manual_seed(seed + 1)
    lost = torch.rand(E, E, generator=generator) < share
    lost |= torch.rand(E, 1, generator=generator) < share / 2
    return similarity.masked_fill(lost, torch.nan).fill_diagonal_(1.0)


def odd_weight_bits(dtype: torch.dtype) -> list[int]:
    """The bits of weights at the edges of what a dtype holds, and of NaNs of several kinds."""
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps
    values = [0.0, -0.0, least, -least, limits.smallest_normal, limits.max, -limits.max, limits.max / 2]
    values += [torch.inf, -torch.inf, 255.99, 256.0, 300.0, -300.0, 2.0**-25, 3 * 2.0**-25, -0.75]
    nan = torch.tensor([torch.nan], dtype=dtype)
    quiet = int(bits(nan))
    # The other sign, another payload, and one that signals: its payload without the bit that says quiet.
    silent = 1 << (-int(math.log2(limits.eps)) - 1)
    nans = [quiet, quiet | torch.iinfo(bits(nan).dtype).min, quiet | 1, (quiet & ~silent) | 1]
    return [*bits(torch.tensor(values, dtype=torch.float64).to(dtype)).tolist(), *nans, quiet, quiet]


def fuzzed(seed: int) -> Case:
    """A random call of any size that the kernel takes."""
    rng = random.Random(seed)
    E = rng.choice([1, 3, 8, 31, 60, 64, 128, 256, 512, 1024])
    K = rng.randint(1, min(E, 32 if rng.random() < 0.1 else 12))
    T = rng.choice([1, 2, 5, 16, 33, 64, 100, 256])
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float16, torch.float64])
    ids, weights = batch(T, K, E, seed, order="shuffled", ties=rng.random() < 0.3, dtype=dtype)
    for _ in range(rng.choice([0, 0, 5])):
        ids[rng.randrange(T), rng.randrange(K)] = rng.choice([-1, E, E + 7])
    for _ in range(rng.choice([0, 0, T])):
        t = rng.randrange(T)
        ids[t, rng.randrange(K)] = ids[t, rng.randrange(K)]
    odd = odd_weight_bits(dtype)
    for _ in range(rng.choice([0, 0, 0, 5, T])):
        bits(weights)[rng.randrange(T), rng.randrange(K)] = rng.choice(odd)
    merge = rng.choice(["none", "same", "distinct", "sentinel"])
    active_experts = rng.choice([0, 0, K, E // 2, 0.25, "auto", ((1, 0), (8, E // 4), (100, E))])
    options: dict[str, Any] = {
        "select_top_k": rng.choice([1, 1, 2, K]),
        "threshold": rng.choice([0.0, 0.5, 0.9, 0.99]),
        "active_experts": active_experts,
        "cap": not may_be_zero(active_experts) and rng.random() < 0.5,
        "keep": tuple(rng.sample(range(E), min(E, rng.choice([0, 0, 3])))),
        "targets": rng.choice(["primary", "active"]),
        "merge": merge,
        "sentinel": -1 if merge == "sentinel" else None,
    }
    if rng.random() < 0.5:
        options["num_tokens"] = torch.tensor(rng.randint(0, T), dtype=rng.choice([torch.int32, torch.int64]))
    if rng.random() < 0.3:
        options["row_budgets"] = torch.tensor([rng.randint(LAYER_BUDGET, K) for _ in range(T)])
    if rng.random() < 0.3:
        options["scale"] = similarity_matrix(E, seed) + 0.5
        options["min_gain"] = rng.choice([0.0, 0.001, 0.02, 0.2])
    levels = rng.choice([None, 4])
    wide = ids.long() if rng.random() < 0.5 else ids
    similarity = similarity_matrix(E, seed, levels=levels)
    if rng.random() < 0.3:
        similarity = forget_some(similarity, seed, share=0.5)
    return Case(wide, weights, similarity, options)
