"""The host side of the ``cuda`` backend, without a device: the choice, the cache and what it says."""

from __future__ import annotations

import builtins
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import BackendUnavailable, InputError
from sere.reroute import prepare as prepare_module
from sere.reroute import prepare_layer, reroute, select
from sere.reroute.backends import cuda, registry
from sere.reroute.backends.cuda import compiler, device
from sere.reroute.backends.cuda.launch import (
    MOST_EXPERTS,
    MOST_ROWS,
    MOST_SLOTS,
    SOURCE,
    Launch,
    prepare,
    too_large,
)
from sere.reroute.types import Rules, prepare_neighbors
from sere.similarity.layer import LayerSimilarity
from tests.support.batches import batch, similarity_matrix
from tests.support.shim.driver import HAS_CUDA_CORE, NO_CUDA_CORE

without_device = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
with_cuda_core = pytest.mark.skipif(not HAS_CUDA_CORE, reason=NO_CUDA_CORE)


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    _forget()
    yield
    _forget()


def _forget() -> None:
    select.cache_clear()
    registry.say_fallback.cache_clear()
    device.tried.cache_clear()
    device.kernels.cache_clear()
    device.stream_of.cache_clear()
    device._shape_of.cache_clear()
    device._core.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, reason: str | None) -> None:
    """Let cuda-core be installed and the try on the device end with ``reason``."""
    monkeypatch.setattr(registry, "_installed", lambda _: True)
    monkeypatch.setattr(cuda, "why_not", lambda _: reason)


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The automatic choice is torch with one log line, the named backend raises with the install line."""
    monkeypatch.setattr(registry, "_installed", lambda package: package != "cuda.core")
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda", 64) == "torch"
        assert select("auto", "cuda", 128) == "torch"
    (record,) = caplog.records
    assert "instead of cuda: the package cuda.core is not installed" in record.message
    with pytest.raises(BackendUnavailable, match=r"'cuda' cannot run here: .* pip install '\.\[cuda\]'"):
        select("cuda", "cuda")


def test_a_package_whose_parent_is_missing() -> None:
    """Looking for ``cuda.core`` where there is no ``cuda`` at all says that it is not installed."""
    assert registry._installed.__wrapped__("no_such_package_at_all.core") is False


@without_device
def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With cuda-core but no device the named backend says that PyTorch sees none."""
    monkeypatch.setattr(registry, "_installed", lambda _: True)
    with pytest.raises(BackendUnavailable, match="cannot run here: PyTorch sees no CUDA device"):
        select("cuda", "cuda")


def test_a_device_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the try ends well, the automatic choice for CUDA tensors is the kernel."""
    pretend(monkeypatch, reason=None)
    assert select("auto", "cuda") == "cuda"
    assert select("cuda", "cuda", MOST_EXPERTS) == "cuda"


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What the try reports is what the log line and the error say."""
    pretend(monkeypatch, reason="DynamicLibNotFoundError: libnvrtc.so.13")
    with caplog.at_level(logging.WARNING, "sere"):
        assert select("auto", "cuda") == "torch"
    assert "instead of cuda: DynamicLibNotFoundError: libnvrtc.so.13" in caplog.text
    with pytest.raises(BackendUnavailable, match="libnvrtc"):
        select("cuda", "cuda")


def test_more_experts_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 1025 experts falls back, or raises where the backend was named."""
    pretend(monkeypatch, reason=None)
    assert registry.BACKENDS["cuda"].most_experts == MOST_EXPERTS
    assert select("auto", "cuda", MOST_EXPERTS + 1) == "torch"
    with pytest.raises(BackendUnavailable, match="at most 1024 experts a layer, these are 1025"):
        select("cuda", "cuda", MOST_EXPERTS + 1)
    layer = LayerSimilarity(torch.ones(1025, 1025))
    with pytest.raises(BackendUnavailable, match="it runs on cuda tensors, these are on cpu"):
        prepare_layer(layer, RerouteConfig(select_top_k=1, backend="cuda"))


def test_why_not_reports_any_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while the kernel is tried becomes one line of reason, never a traceback."""

    def fail(*_: object) -> None:
        raise OSError("the driver\n  refused")

    pretend_device(monkeypatch)
    monkeypatch.setattr(device, "_try", fail)
    assert device.why_not() == "OSError: the driver refused"


def pretend_device(monkeypatch: pytest.MonkeyPatch, *, capturing: bool = False) -> None:
    """Let PyTorch see CUDA devices, of which number 3 is the current one."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False)


def pretend_core(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Any]:
    """Put another cuda-core in place; return what it is told to do."""
    put: list[Any] = []
    core = SimpleNamespace(
        Device=lambda index: SimpleNamespace(set_current=lambda: put.append(index)),
        ObjectCode=SimpleNamespace(from_cubin=lambda code: SimpleNamespace(get_kernel=lambda e: (code, e))),
        LaunchConfig=lambda grid, block: (grid, block),
        Stream=SimpleNamespace(from_handle=lambda handle: ["stream", handle]),
        launch=lambda *arguments: put.append(arguments),
    )
    vars(core).update(changes)
    monkeypatch.setattr(device, "_core", lambda: core)
    monkeypatch.setattr(device, "cubin", lambda arch: f"code for {arch}")
    return put


def test_each_device_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device is compiled for and tried once, and its failure concerns that device alone."""
    tried: list[int] = []

    def attempt(ids_dtype: torch.dtype, weights_dtype: torch.dtype, where: torch.device) -> None:
        tried.append(where.index)
        if where.index == 4:
            raise OSError("refused")

    pretend_device(monkeypatch)
    monkeypatch.setattr(registry, "_installed", lambda _: True)
    monkeypatch.setattr(device, "_try", attempt)
    for _ in range(2):
        assert select("auto", "cuda") == "cuda"
        assert registry.on_device("cuda", "auto", torch.device("cuda", 5)) == "cuda"
        assert registry.on_device("cuda", "auto", torch.device("cuda", 4)) == "torch"
    assert tried == [3] * 8 + [5] * 8 + [4]
    with pytest.raises(BackendUnavailable, match="'cuda' cannot run on cuda:4: OSError: refused"):
        registry.on_device("cuda", "cuda", torch.device("cuda", 4))
    assert registry.on_device("torch", "auto", torch.device("cuda", 4)) == "torch"


def test_a_layer_makes_its_own_device_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preparing asks for the very device that its tensors are on, and takes the backend that it is told."""
    asked: list[Any] = []

    def on_device(*arguments: object) -> str:
        asked.append(arguments)
        return "reference"

    monkeypatch.setattr(prepare_module, "on_device", on_device)
    config = RerouteConfig(select_top_k=1, backend="torch")
    made = prepare_layer(LayerSimilarity(similarity_matrix(8, 0)), config)
    assert asked == [("torch", "torch", torch.device("cpu"))]
    assert made.backend == "reference"


def test_first_use_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, loaded or tried while a graph is captured: the error says what to do before."""
    pretend_device(monkeypatch, capturing=True)
    pretend_core(monkeypatch)
    prepared = Launch("reroute_int32_float32", 2, 64, (5, 6))
    text = "not ready on cuda:3 while a CUDA graph is captured; prepare the layer, or route one step, before"
    with pytest.raises(BackendUnavailable, match=text):
        device.launch(prepared, torch.device("cuda", 3))
    with pytest.raises(BackendUnavailable, match=text):
        device.why_not()


def test_num_tokens_elsewhere_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of tokens that is not on the device would be frozen into the graph: it is refused."""
    layer = LayerSimilarity(similarity_matrix(8, 0))
    neighbors = prepare_neighbors(layer, threshold=0.0)
    ids, weights = (tensor.to("meta") for tensor in batch(4, 2, 8, seed=0))
    rules = Rules(select_top_k=1, min_active=0, active_targets=False, merge=0, sentinel=0)
    pretend_device(monkeypatch, capturing=True)
    text = "num_tokens: expected a tensor on meta while a CUDA graph is captured, got one on cpu"
    with pytest.raises(InputError, match=text):
        device.run(ids, weights, neighbors, rules, None, torch.tensor(3), None)


def test_what_is_handed_to_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch gives cuda-core a stream of its own kind, the geometry, the entry and the words in order."""
    pretend_device(monkeypatch)
    put = pretend_core(monkeypatch)
    prepared = Launch("reroute_int32_float32", 2, 64, (5, 6))
    device.launch(prepared, torch.device("cuda", 3))
    device.launch(prepared, torch.device("cuda", 3))
    index, (stream, config, kernel, *words), (again, *_) = put
    assert index == 3
    assert stream == ["stream", 73]
    assert again is stream
    assert (config, words) == ((2, 64), [5, 6])
    assert kernel == ("code for sm_93", "reroute_int32_float32")


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


def test_a_damaged_file_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Machine code that the driver refuses is deleted and compiled once more; a second refusal is the end."""

    def load(code: bytes) -> Any:
        if code != b"good":
            raise RuntimeError("no image")
        return SimpleNamespace(get_kernel=lambda entry: entry)

    pretend_device(monkeypatch)
    pretend_core(monkeypatch, ObjectCode=SimpleNamespace(from_cubin=load))
    monkeypatch.setattr(device, "cubin", compiler.cubin)
    monkeypatch.setattr(compiler, "compile_source", lambda _: b"good")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    compiler.cubin("sm_93")
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"bad")
    assert set(device.kernels(3)) == set(device.entries())
    assert file.read_bytes() == b"good"
    device.kernels.cache_clear()
    file.write_bytes(b"bad")
    monkeypatch.setattr(compiler, "compile_source", lambda _: b"bad again")
    with pytest.raises(RuntimeError, match="no image"):
        device.kernels(3)


def test_the_words_of_a_launch() -> None:
    """Addresses come first, in the order of the entry's arguments, then the numbers; what is absent is 0."""
    layer = LayerSimilarity(similarity_matrix(16, 0))
    neighbors = prepare_neighbors(layer, threshold=0.0)
    ids, weights = batch(4, 3, 16, seed=0)
    budget = torch.ones(4, dtype=torch.int64)
    rules = Rules(select_top_k=9, min_active=50, active_targets=True, merge=3, sentinel=-1)
    prepared = prepare(ids, weights, ids, weights, neighbors, rules, budget, 2, None)
    pointers = [
        ids, weights, ids, weights, neighbors.lists, neighbors.keep, None, budget, None, None,
    ]  # fmt: skip
    assert prepared.words[:10] == tuple(0 if p is None else p.data_ptr() for p in pointers)
    assert prepared.words[10:] == (4, 3, 16, 2, 3, 16, 3, 1 | 2, 3, -1)
    assert prepared.entry == "reroute_int32_float32"
    parameters = re.findall(r"(\w+)(?:,|\s*\\?\n\s*\))", SOURCE.read_text().split("NAME(")[1].split("{")[0])
    assert len(parameters) == len(prepared.words)


def test_more_rows_than_slots_can_be_numbered() -> None:
    """Slots are numbered in 32 bits: a batch beyond that is refused before anything is allocated."""
    assert too_large(MOST_ROWS, MOST_SLOTS, MOST_EXPERTS) is None
    assert MOST_ROWS * MOST_SLOTS < 2**31
    assert too_large(MOST_ROWS + 1, 1, 8) == "the kernel takes at most 67108863 rows, these are 67108864"


@pytest.mark.parametrize("E", [1, 5, 8, 33, 100])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.5])
def test_lists_side_by_side(E: int, threshold: float) -> None:
    """Each expert's list is its neighbors up to the cut, most similar first, then the expert itself."""
    neighbors = prepare_neighbors(LayerSimilarity(similarity_matrix(E, E)), threshold=threshold)
    groups, pieces = -(-E // 8), -(-E // 32)
    assert neighbors.lists.shape == (groups, pieces, 32, 8)
    lists = neighbors.lists.permute(0, 3, 1, 2).reshape(8 * groups, 32 * pieces)
    for e in range(E):
        count = int(neighbors.count[e])
        assert lists[e, :count].tolist() == neighbors.order[e, :count].tolist()
        assert set(lists[e, count:].tolist()) == {e}
    assert int(lists.max()) < E


def test_counters_on_another_device() -> None:
    """Counters must be where the ids are: an address on another device would be written to."""
    ids, weights = batch(4, 2, 8, seed=0)
    counters = torch.zeros(7, dtype=torch.int64, device="meta")
    with pytest.raises(InputError, match="counters: expected them on cpu like the ids, got meta"):
        reroute(ids, weights, similarity_matrix(8, 0), select_top_k=1, counters=counters)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``SERE_CACHE_DIR`` goes before ``XDG_CACHE_HOME``, that before the home folder."""
    monkeypatch.delenv("SERE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert compiler.cache_folder() == Path.home() / ".cache" / "sere"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.cache_folder() == tmp_path / "sere"
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "mine"))
    assert compiler.cache_folder() == tmp_path / "mine"


def test_compiled_once_per_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second call reads the file; another architecture or another source compiles anew."""
    calls: list[str] = []

    def compile_source(arch: str, **_: Any) -> bytes:
        calls.append(arch)
        return f"code for {arch}, {len(calls)}".encode()

    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "compile_source", compile_source)
    assert compiler.cubin("sm_90") == compiler.cubin("sm_90") == b"code for sm_90, 1"
    assert compiler.cubin("sm_80") == b"code for sm_80, 2"
    monkeypatch.setattr(compiler, "source_text", lambda: "another source")
    assert compiler.cubin("sm_90") == b"code for sm_90, 3"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The code is compiled and used all the same."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(compiler, "compile_source", lambda _: b"code")
    assert compiler.cubin("sm_90") == b"code"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no folder can be named the code is compiled and used, not kept."""

    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.delenv("SERE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(compiler, "compile_source", lambda _: b"code")
    assert compiler.cubin("sm_90") == b"code"
    assert compiler.forget("sm_90") is False


def test_source_is_one_text() -> None:
    """What NVRTC gets has every header of ours once, and asks for none of its own."""
    text = compiler.source_text()
    assert "#include" not in text
    for header in SOURCE.parent.glob("*.cuh"):
        body = [line for line in header.read_text().splitlines() if line and not line.startswith("#include")]
        assert text.count(body[0]) == 1
        assert text.count(body[-2]) >= 1


def test_importing_the_backend_loads_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module itself imports where cuda-core is missing: the reason comes when it is asked for."""
    import importlib

    real_import = builtins.__import__

    def without_cuda(name: str, *rest: Any) -> Any:
        if name == "cuda" or name.startswith("cuda."):
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_cuda)
    importlib.reload(importlib.import_module("sere.reroute.backends.cuda"))


@with_cuda_core
def test_nvrtc_compiles_the_source() -> None:
    """NVRTC itself, through cuda-core, makes machine code with every entry, without a device."""
    code = compiler.compile_source("sm_90")
    assert code[:4] == b"\x7fELF"
    assert all(entry.encode() in code for entry in device.entries())
