"""The compile check sees what it is to see."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sere.reroute.cuda.launch import entries

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "cuda_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_check"] = module
    spec.loader.exec_module(module)
    return module


def report(*, stack: int = 0, spilled: int = 0, prefix: str = "    ") -> str:
    """What ptxas prints; NVRTC's begins the second line with ``ptxas .``."""
    return "".join(
        f"ptxas info    : Compiling entry function '{entry}' for 'sm_90'\n"
        f"ptxas info    : Function properties for {entry}\n"
        f"{prefix}{stack} bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads\n"
        "ptxas info    : Used 50 registers, used 1 barriers, 15584 bytes smem, 520 bytes cmem[0]\n"
        for entry in entries()
    )


@pytest.mark.parametrize("prefix", ["    ", "ptxas         .     "])
def test_a_clean_report(script: ModuleType, prefix: str) -> None:
    """Registers, shared memory and no spills: well, from nvcc and from NVRTC."""
    row, well = script.check("nvcc", lambda _: report(prefix=prefix), "sm_90")
    assert row == ["nvcc", "sm_90", 8, 50, 15584, 0, 0]
    assert well


@pytest.mark.parametrize("fault", [{"stack": 8}, {"spilled": 4}])
def test_spills_and_stack_fail(script: ModuleType, fault: dict[str, int]) -> None:
    """Bytes of stack or of spilled registers fail the check."""
    assert not script.check("nvcc", lambda _: report(**fault), "sm_90")[1]


def test_a_missing_entry_fails(script: ModuleType) -> None:
    """A report without some entry is no proof for it."""
    assert not script.check("nvcc", lambda _: report().replace(entries()[0], "other"), "sm_90")[1]
    assert not script.check("nvcc", lambda _: "", "sm_90")[1]
