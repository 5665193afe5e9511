"""What the driver is handed; run by ``test_cuda_core.py``, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sere.errors import BackendUnavailable
from sere.reroute.backends.cuda import compiler, device
from sere.reroute.backends.cuda.launch import dtypes_of, entries
from sere.reroute.batch import StepDtypes
from tests.support.batches import Case, assert_same_bits, batch, fuzzed, similarity_matrix
from tests.support.cuda_host import forget_kernels
from tests.support.shim.driver import GPU, Driver

pytestmark = pytest.mark.usefixtures("shim_backend")
ENTRY = "reroute_int32_float32"
OTHER = StepDtypes(torch.int64, torch.bfloat16)


@pytest.fixture
def unloaded() -> Iterator[None]:
    """The entries as they are before their first use in a process."""
    forget_kernels()
    yield
    forget_kernels()


@pytest.fixture
def loaded() -> None:
    """All entries, as they are after their first use."""
    for entry in entries():
        device.kernel_of(GPU.index, entry)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("entry", entries())
def test_every_entry_is_tried(entry: str) -> None:
    """The trial by which ``"auto"`` decides passes for each id and weight type."""
    assert device.tried(GPU.index, dtypes_of(entry)) is None


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("seed", range(40))
def test_one_launch_a_call(driver: Driver, seed: int) -> None:
    """Once loaded, a call of any size is one launch, and every argument arrives: the reference's bits."""
    before = driver.launches.value
    assert_same_bits(fuzzed(seed))
    assert driver.launches.value == before + 1


@pytest.mark.parametrize("stream", [0, 4096])
def test_what_the_driver_is_told(driver: Driver, monkeypatch: pytest.MonkeyPatch, stream: int) -> None:
    """PyTorch's stream, its default one too, our grid and block, static shared memory, no attributes."""
    monkeypatch.setattr(driver, "stream", stream)
    ids, weights = batch(300, 8, 64, seed=0)
    Case(ids, weights, similarity_matrix(64, 0)).run("shim")
    config = driver.config
    assert (config.stream or 0) == stream
    assert list(config.grid) == [2, 1, 1]
    assert list(config.block) == [1024, 1, 1]
    assert (config.shared_bytes, config.attribute_count) == (0, 0)


def cached_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A cache of its own, with an entry's machine code in it."""
    monkeypatch.setenv("SERE_CACHE_DIR", str(folder))
    compiler.cubin("sm_90", ENTRY)
    (file,) = folder.iterdir()
    return file


@pytest.mark.usefixtures("unloaded")
def test_entries_are_compiled_when_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trying the device compiles one entry; a step of other dtypes adds its own, and no more."""
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    assert device.tried(GPU.index, dtypes_of(ENTRY)) is None
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [ENTRY]
    ids, weights = batch(4, 2, 8, seed=0)
    for _ in range(2):
        assert_same_bits(Case(ids.to(OTHER.ids), weights.to(OTHER.weights), similarity_matrix(8, 0)))
        found = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
        assert found == [ENTRY, "reroute_int64_bfloat16"]


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("damage", ["cut off", "another kernel's"])
def test_a_file_that_the_driver_refuses(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    """It is compiled once more, whether the driver does not take it or does not find the entry in it."""
    file = cached_file(monkeypatch, tmp_path)
    good = file.read_bytes()
    file.write_bytes(b"" if damage == "cut off" else good.replace(b"reroute_int32", b"reroute_int23"))
    device.kernel_of(GPU.index, ENTRY)
    assert file.read_bytes() == good


@pytest.mark.usefixtures("unloaded")
def test_a_driver_that_takes_no_code(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver too old for the code is refused in one line with what to do, and no broken file stays."""
    file = cached_file(monkeypatch, tmp_path)
    monkeypatch.setattr(driver.loads, "value", 0)
    with pytest.raises(BackendUnavailable, match="refused by the shim's driver; choose backend") as found:
        device.kernel_of(GPU.index, ENTRY)
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("unloaded")
def test_the_first_step_of_other_dtypes(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their entry is tried before it routes: where it does nothing, the step is refused, and no other."""
    ids, weights = batch(4, 2, 8, seed=0)
    usual = Case(ids, weights, similarity_matrix(8, 0))
    other = Case(ids.to(OTHER.ids), weights.to(OTHER.weights), similarity_matrix(8, 0))
    assert_same_bits(usual)
    monkeypatch.setattr(driver.runs, "value", 0)
    text = r"cannot run steps with int64 ids and bfloat16 weights on cuda:0: RuntimeError: the kernel gave"
    before = driver.launches.value
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=text):
            other.run("shim")
    assert driver.launches.value == before + 1
    monkeypatch.setattr(driver.runs, "value", 1)
    assert_same_bits(usual)
