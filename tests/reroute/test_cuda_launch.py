"""What the ``cuda`` backend hands to the driver, and when it refuses to; without a device."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from sere.errors import BackendUnavailable, InputError
from sere.reroute.backends import torch_ops
from sere.reroute.backends.cuda import device, prepare
from sere.reroute.backends.cuda.launch import (
    ACTIVE_TARGETS,
    CAP,
    MOST_EXPERTS,
    MOST_ROWS,
    MOST_SLOTS_PER_ROW,
    SOURCE,
    WIDE_BUDGETS,
    Launch,
    make_launch,
    too_large,
)
from sere.reroute.backends.cuda.layer import for_torch
from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.constants import MERGE_SENTINEL
from sere.reroute.neighbors import rank_neighbors
from tests.support.batches import batch, raw_layer, similarity_matrix
from tests.support.cuda_host import pretend_core, pretend_device
from tests.support.shim.driver import HAS_CUDA_CORE, NO_CUDA_CORE

pytestmark = pytest.mark.usefixtures("forgetful")

with_cuda_core = pytest.mark.skipif(not HAS_CUDA_CORE, reason=NO_CUDA_CORE)


def test_first_use_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, loaded or tried while a graph is captured: the error says what to do before."""
    pretend_device(monkeypatch, capturing=True)
    pretend_core(monkeypatch)
    call = Launch("reroute_int32_float32", 2, 64, (5, 6))
    text = "no step with int32 ids and float32 weights on cuda:3 yet, .*; route one step of these dtypes"
    with pytest.raises(BackendUnavailable, match=text):
        device.launch(call, torch.device("cuda", 3))
    with pytest.raises(BackendUnavailable, match=text):
        device.why_not()


def test_each_entry_has_its_own_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is loaded once for a device, and then runs in a capture, too; another one is refused there."""
    pretend_device(monkeypatch)
    pretend_core(monkeypatch)
    loaded: list[str] = []
    monkeypatch.setattr(device, "cubin", lambda _, entry: loaded.append(entry))
    calls = [Launch(f"reroute_int64_{weights}", 1, 64, ()) for weights in ("bfloat16", "float32")]
    for _ in range(2):
        device.launch(calls[0], torch.device("cuda", 3))
    assert loaded == [calls[0].entry]
    pretend_device(monkeypatch, capturing=True)
    device.launch(calls[0], torch.device("cuda", 3))
    with pytest.raises(BackendUnavailable, match="no step with int64 ids and float32 weights on cuda:3 yet"):
        device.launch(calls[1], torch.device("cuda", 3))
    assert loaded == [calls[0].entry]


def test_num_tokens_elsewhere_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of tokens that is not on the device would be frozen into the graph: it is refused."""
    layer = prepare(raw_layer(similarity_matrix(8, 0)), torch.device("cpu"))
    ids, weights = (tensor.to("meta") for tensor in batch(4, 2, 8, seed=0))
    pretend_device(monkeypatch, capturing=True)
    text = "num_tokens: expected a tensor on meta while a CUDA graph is captured, got one on cpu"
    with pytest.raises(InputError, match=text):
        device.run(TokenBatch(ids, weights, num_tokens=torch.tensor(3)), layer, None)


def test_what_is_handed_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch gives cuda-core a stream of its own kind, geometry, entry and the arguments in order."""
    pretend_device(monkeypatch)
    put = pretend_core(monkeypatch)
    call = Launch("reroute_int32_float32", 2, 64, (5, 6))
    device.launch(call, torch.device("cuda", 3))
    device.launch(call, torch.device("cuda", 3))
    index, (stream, config, kernel, *kernel_args), (again, *_) = put
    assert index == 3
    assert stream == ["stream", 73]
    assert again is stream
    assert (config, kernel_args) == ((2, 64), [5, 6])
    assert kernel == ("reroute_int32_float32 for sm_93", "reroute_int32_float32")


def test_another_device_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device of the tensors is made the current one for the launch, and the stream is that device's."""
    entered: list[int] = []
    pretend_device(monkeypatch)
    put = pretend_core(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext(entered.append(index)))
    device.launch(Launch("reroute_int32_float32", 1, 64, ()), torch.device("cuda", 1))
    assert entered == [1]
    assert put[1][0] == ["stream", 71]


def test_a_new_thread_makes_the_device_current_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch may have given a new thread no context: the first launch there sees to it."""
    pretend_device(monkeypatch)
    put = pretend_core(monkeypatch)

    def two_launches() -> None:
        for _ in range(2):
            device.launch(Launch("reroute_int32_float32", 1, 64, ()), torch.device("cuda", 3))

    for _ in range(2):  # the kernel is loaded by the first thread
        with ThreadPoolExecutor(1) as pool:
            pool.submit(two_launches).result()
    assert [3 if what == 3 else "launch" for what in put] == [3, "launch", "launch"] * 2


@with_cuda_core
@pytest.mark.filterwarnings("error")
def test_streams_without_a_warning() -> None:
    """cuda-core takes the stream as one of its own: foreign objects would warn, which may be an error."""
    from cuda.core import Stream

    stream = device.stream_of(4096)
    assert isinstance(stream, Stream)
    assert int(stream.handle) == 4096


def test_the_kernel_arguments_of_a_launch() -> None:
    """Addresses come first, in the order of the entry's arguments, then the numbers; what is absent is 0."""
    settings = {"active_experts": 50, "cap": True, "targets": "active", "merge": "sentinel", "sentinel": -1}
    raw = raw_layer(similarity_matrix(16, 0), **settings)
    layer = prepare(raw, torch.device("cpu"))
    ids, weights = batch(4, 3, 16, seed=0)
    budgets = torch.ones(4, dtype=torch.int64)
    new = Routing(torch.empty_like(ids), torch.empty_like(weights))
    made = make_launch(TokenBatch(ids, weights, budgets, 2), layer, new, None)
    of_layer = (layer.lists, layer.limits, layer.keep, layer.sensitivity)
    pointers = [ids, weights, *new, *of_layer, None, budgets, None, None]
    flags = ACTIVE_TARGETS | WIDE_BUDGETS | CAP
    assert made.kernel_args[:12] == tuple(0 if p is None else p.data_ptr() for p in pointers)
    assert made.kernel_args[12:] == (4, 3, 16, 2, MERGE_SENTINEL, flags, 3, -1)
    assert made.entry == "reroute_int32_float32"
    parameters = re.findall(r"(\w+)(?:,|\s*\\?\n\s*\))", SOURCE.read_text().split("NAME(")[1].split("{")[0])
    assert len(parameters) == len(made.kernel_args)


def test_more_rows_than_slots_can_be_numbered() -> None:
    """Slots are numbered in 32 bits: a batch beyond that is refused before anything is allocated."""
    assert too_large(MOST_ROWS, MOST_SLOTS_PER_ROW, MOST_EXPERTS) is None
    assert MOST_ROWS * MOST_SLOTS_PER_ROW < 2**31
    reason = too_large(MOST_ROWS + 1, 1, 8)
    assert reason == "the kernel takes at most 67108863 rows, this batch has 67108864"


@pytest.mark.parametrize("E", [1, 5, 8, 33, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.5])
def test_lists_side_by_side(E: int, threshold: float) -> None:
    """Each expert's list is its neighbors up to the cut, most similar first, then the expert itself."""
    raw = raw_layer(similarity_matrix(E, E), threshold=threshold)
    order, counts = rank_neighbors(raw.similarity, threshold)
    layer = prepare(raw, torch.device("cpu"))
    groups, pieces = -(-E // 8), -(-E // 32)
    assert layer.lists.shape == (groups, pieces, 32, 8)
    lists = layer.lists.permute(0, 3, 1, 2).reshape(8 * groups, 32 * pieces)
    for e in range(E):
        reached = int(counts[e])
        assert lists[e, :reached].tolist() == order[e, :reached].tolist()
        assert set(lists[e, reached:].tolist()) == {e}
    assert int(lists.max()) < E


@pytest.mark.parametrize("E", [1, 5, 8, 33, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.5])
def test_the_lists_are_enough_for_the_torch_backend(E: int, threshold: float) -> None:
    """Where the torch backend runs instead of the kernel, the lists hold all that it would have prepared."""
    raw = raw_layer(similarity_matrix(E, E), threshold=threshold)
    cpu = torch.device("cpu")
    expected, found = torch_ops.prepare(raw, cpu), for_torch(prepare(raw, cpu))
    assert torch.equal(found.position, expected.position)
    assert found.position.dtype == expected.position.dtype
    assert torch.equal(found.keep, expected.keep)
    assert torch.equal(found.limits, expected.limits)
