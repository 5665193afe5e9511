"""The compile check sees what it is to see."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sere.reroute.backends.cuda.launch import entries

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
    row, well = script.check("nvcc", report(prefix=prefix), "sm_90")
    assert row == ["nvcc", "sm_90", 8, 50, 15584, 0, 0]
    assert well


@pytest.mark.parametrize("fault", [{"stack": 8}, {"spilled": 4}])
def test_spills_and_stack_fail(script: ModuleType, fault: dict[str, int]) -> None:
    """Bytes of stack or of spilled registers fail the check."""
    assert not script.check("nvcc", report(**fault), "sm_90")[1]


def test_a_missing_entry_fails(script: ModuleType) -> None:
    """A report without some entry is no proof for it."""
    assert not script.check("nvcc", report().replace(entries()[0], "other"), "sm_90")[1]
    assert not script.check("nvcc", "", "sm_90")[1]


def test_a_cuda_core_that_does_not_load(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that is broken is one line, and no success."""

    def broken(_: str) -> ModuleType:
        raise ImportError("cydriver does not export cuDevSmResourceSplit")

    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    monkeypatch.setattr(script, "find_spec", lambda _: True)
    monkeypatch.setattr(script, "import_module", broken)
    with pytest.raises(SystemExit, match="cuda-core is installed but does not work here: cydriver does not"):
        script.compilers()


CODE = """
.text.reroute_int32_float32:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R4, desc[UR8][R2.64] ;
        /*0020*/                   IMAD.WIDE R2, R0, 0x10, R6 ;
        /*0030*/                   LDG.E.128 R8, desc[UR8][R2.64] ;
        /*0040*/              @!P0 STS.U8 [R5], R11 ;
        /*0050*/                   LDG.E R12, desc[UR8][R6.64] ;
.L_x_1:
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/                   LDG.E R13, desc[UR8][R6.64] ;
        /*0080*/                   DADD R14, R14, R16 ;
        /*0090*/                   EXIT ;
.text.reroute_int64_float32:
        /*0000*/                   EXIT ;
"""


def test_counts(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions between barriers; of the loads before the first one, those before any is looked at."""
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=CODE))
    code = script.disassemble("nvdisasm", b"")
    assert [*code] == ["reroute_int32_float32", "reroute_int64_float32"]
    assert script.count(code["reroute_int32_float32"]) == [10, "6 4", "2 of 3", 1, 1, 0]


def test_without_a_disassembler(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the PATH nor Triton has one, nothing is counted."""
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    monkeypatch.setattr(script.shutil, "which", lambda *_, **__: None)
    assert script.disassembler() is None
