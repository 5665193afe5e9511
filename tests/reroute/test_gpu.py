"""What only a device can show; the common suite runs there as well (``make gpu-test``)."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.reroute import COUNTERS, PreparedLayer, TokenBatch, prepare_layer, reroute, select
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import NO_DEVICE, assert_same_bits, batch, fuzzed, similarity_matrix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_DEVICE),
]
compiled = pytest.mark.parametrize("backend", ["cuda", "triton"])


def make(E: int, **settings: Any) -> PreparedLayer:
    """A prepared layer; M = 0 unless ``settings`` say otherwise."""
    values = {"active_experts": 0, "threshold": 0.4, "backend": "cuda"} | settings
    return prepare_layer(
        LayerSimilarity(similarity_matrix(E, E)), RerouteConfig.from_mapping(values), device="cuda"
    )


def on_device(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    ids, weights = batch(*shape, seed=seed)
    return ids.cuda(), weights.cuda()


def counters() -> Tensor:
    return torch.zeros(len(COUNTERS), dtype=torch.int64, device="cuda")


def test_the_automatic_choice_is_the_kernel() -> None:
    """For CUDA tensors ``backend="auto"`` is the kernel, compiled and tried."""
    select.cache_clear()
    assert select("auto", "cuda") == "cuda"


@compiled
@pytest.mark.parametrize(("T", "K", "E"), [(8, 4, 16), (64, 8, 128), (512, 8, 256)])
def test_graph_replay(T: int, K: int, E: int, backend: str) -> None:
    """A captured launch follows new ids, weights and numbers of tokens (so M), and counts at every replay."""
    points = ((1, K), (T // 2, E // 4), (T, E // 2))
    prepared = make(E, merge="distinct", active_experts=points, targets="active", backend=backend)
    ids, weights = on_device(T, K, E, seed=0)
    num_tokens, counted = torch.tensor(T, device="cuda"), counters()
    prepared.route(TokenBatch(ids, weights, num_tokens=num_tokens), counted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routing = prepared.route(TokenBatch(ids, weights, num_tokens=num_tokens), counted)
    counted.zero_()
    expected_counts = torch.zeros(len(COUNTERS), dtype=torch.int64)
    for seed, N in [(1, T), (2, T // 2), (3, 0), (4, 1), (5, T - 1)]:
        new_ids, new_weights = batch(T, K, E, seed=seed)
        ids.copy_(new_ids)
        weights.copy_(new_weights)
        num_tokens.fill_(N)
        graph.replay()
        expected = reroute(
            new_ids, new_weights, similarity_matrix(E, E), threshold=0.4, merge="distinct",
            active_experts=points, targets="active", num_tokens=N, counters=expected_counts,
            backend="reference",
        )  # fmt: skip
        assert torch.equal(routing.ids.cpu(), expected.ids)
        assert torch.equal(routing.weights.cpu(), expected.weights)
    assert counted.tolist() == expected_counts.tolist()


def test_a_graph_follows_new_limits() -> None:
    """S and M of a layer are read at every replay: a captured launch obeys what ``update`` wrote."""
    ids, weights = on_device(32, 8, 128, seed=1)
    settings: list[dict[str, Any]] = [
        {"active_experts": 16}, {"active_experts": 90}, {"select_top_k": 3, "active_experts": 0},
        {"select_top_k": 8}, {"active_experts": ((1, 8), (32, 64))},
    ]  # fmt: skip
    prepared = make(128, **settings[0])
    prepared.route(TokenBatch(ids, weights))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routing = prepared.route(TokenBatch(ids, weights))
    for changed in settings:
        prepared.update(make(128, **changed))
        graph.replay()
        expected = reroute(
            ids.cpu(), weights.cpu(), similarity_matrix(128, 128), threshold=0.4, backend="reference",
            **({"active_experts": 0} | changed),
        )  # fmt: skip
        assert torch.equal(routing.ids.cpu(), expected.ids)
        assert torch.equal(routing.weights.cpu(), expected.weights)


def test_compiles_whole() -> None:
    """Inductor compiles a step around the kernel with ``fullgraph=True``; the result is the eager one."""
    prepared = make(64, merge="same")

    def step(ids: Tensor, weights: Tensor, num_tokens: Tensor) -> Tensor:
        routing = prepared.route(TokenBatch(ids, weights * 2, num_tokens=num_tokens))
        return (routing.weights * routing.ids).sum(dim=1)

    ids, weights = on_device(16, 8, 64, seed=1)
    num_tokens = torch.tensor(12, device="cuda")
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(ids, weights, num_tokens), step(ids, weights, num_tokens))


@compiled
def test_nothing_waits(backend: str) -> None:
    """A call reads nothing back from the device."""
    prepared = make(64, merge="distinct", active_experts=16, backend=backend)
    ids, weights = on_device(16, 8, 64, seed=1)
    num_tokens, counted = torch.tensor(12, device="cuda"), counters()
    budget = torch.ones(16, dtype=torch.int32, device="cuda")
    prepared.route(TokenBatch(ids, weights))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared.route(TokenBatch(ids, weights, budget, num_tokens), counted)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream() -> None:
    """The launch goes to PyTorch's current stream: it waits for what that stream does, and no other."""
    prepared = make(64)
    ids, weights = on_device(16, 8, 64, seed=1)
    expected = prepared.route(TokenBatch(ids, weights)).ids
    torch.cuda.synchronize()
    late = torch.zeros_like(ids)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(ids)
        routing = prepared.route(TokenBatch(late, weights))
    stream.synchronize()
    assert torch.equal(routing.ids, expected)


def test_another_thread() -> None:
    """A thread that never touched the device before launches as the main one does."""
    prepared = make(64)
    ids, weights = on_device(16, 8, 64, seed=1)
    expected = prepared.route(TokenBatch(ids, weights)).ids
    torch.cuda.synchronize()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(
            pool.submit(lambda: prepared.route(TokenBatch(ids, weights)).ids).result(), expected
        )


FIRST_IN_A_CAPTURE = """
import torch
from sere.config import RerouteConfig
from sere.reroute import TokenBatch, prepare_layer
from sere.similarity.layer import LayerSimilarity

ids = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device="cuda")
weights = torch.tensor([[0.75, 0.25], [0.5, 0.375]], device="cuda")
layer = LayerSimilarity(torch.full((4, 4), 0.5).fill_diagonal_(1.0))
prepared = prepare_layer(layer, RerouteConfig(active_experts=0, backend="cuda"), device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    routing = prepared.route(TokenBatch(ids, weights))
graph.replay()
assert routing.ids.tolist() == [[0, 0], [2, 0]], routing.ids
"""


@pytest.mark.parametrize("loading", ["LAZY", "EAGER"])
def test_the_first_launch_in_a_capture(loading: str) -> None:
    """In a new process a prepared layer is all that a capture of the usual dtypes needs before."""
    environment = os.environ | {"CUDA_MODULE_LOADING": loading}
    run = subprocess.run(
        [sys.executable, "-c", FIRST_IN_A_CAPTURE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this needs two devices")
def test_a_second_device() -> None:
    """A layer on another device than the current one runs there, and leaves the current one as it was."""
    layer = LayerSimilarity(similarity_matrix(64, 64))
    settings = RerouteConfig(active_experts=16, threshold=0.4, backend="cuda")
    ids, weights = batch(16, 8, 64, seed=1)
    first, second = (
        prepare_layer(layer, settings, device=where)
        .route(TokenBatch(ids.to(where), weights.to(where)))
        .ids.cpu()
        for where in ("cuda:0", "cuda:1")
    )
    assert torch.equal(first, second)
    assert torch.cuda.current_device() == 0


def test_slices_of_larger_tensors() -> None:
    """Rows and columns of a larger tensor, at addresses that only suit one element, give the same."""
    prepared = make(64, merge="same")
    ids, weights = on_device(17, 9, 64, seed=1)
    got = prepared.route(TokenBatch(ids[1:, 1:], weights[1:, 1:]))
    expected = prepared.route(TokenBatch(ids[1:, 1:].clone(), weights[1:, 1:].clone()))
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.weights, expected.weights)
    flat_ids, flat_weights = ids.flatten()[1:129].view(16, 8), weights.flatten()[1:129].view(16, 8)
    assert flat_ids.data_ptr() % 8 == 4
    got = prepared.route(TokenBatch(flat_ids, flat_weights))
    assert torch.equal(got.ids, prepared.route(TokenBatch(flat_ids.clone(), flat_weights.clone())).ids)


@compiled
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_fuzzed_cases(block: int, backend: str) -> None:
    """Ids, weights and counters equal the reference's bit for bit."""
    # Each shape and each set of options is compiled by Triton, its programs a second each.
    for seed in range(100 * block, 100 * block + (100 if backend == "cuda" else 2)):
        assert_same_bits(fuzzed(seed), backend)


def test_the_same_bits_every_time() -> None:
    """Two hundred runs of one call give one result."""
    prepared = make(256, merge="distinct", active_experts=200)
    ids, weights = on_device(256, 8, 256, seed=1)
    first = prepared.route(TokenBatch(ids, weights))
    for _ in range(200):
        again = prepared.route(TokenBatch(ids, weights))
        assert torch.equal(again.ids, first.ids)
        assert torch.equal(again.weights, first.weights)
