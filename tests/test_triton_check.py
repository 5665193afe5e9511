"""The check of Triton's programs sees what changes results, and compiles without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.source import ROOT

pytestmark = pytest.mark.checkout
sys.path.insert(0, str(ROOT / "benchmarks"))
import triton_check  # noqa: E402

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install triton"
)


@pytest.mark.parametrize(
    ("ptx", "used", "common", "expected"),
    [
        ("add.rn.f64 mul.f64", {"LOCAL": 0, "STACK": 0}, True, []),
        ("fma.rn.f64 %fd1", {}, True, ["fma.rn.f"]),
        ("mul.ftz.f32 %f1", {}, False, [".ftz"]),
        ("", {"LOCAL": 0, "STACK": 8}, True, ["local memory"]),
        ("", {"LOCAL": 0, "STACK": 8}, False, []),
    ],
    ids=["clean", "fused", "flushed", "spilled", "spilled at the largest shape"],
)
def test_faults(ptx: str, used: dict[str, int], common: bool, expected: list[str]) -> None:
    """Fused and flushed arithmetic always fail; local memory does at the shape that models have."""
    assert triton_check.faults(ptx, used, common=common) == expected


def test_without_triton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is compiled, and nothing fails."""
    monkeypatch.setattr(triton_check, "find_spec", lambda _: None)
    assert triton_check.main() == 0
    assert "Triton is not here" in capsys.readouterr().out


@needs_triton
def test_a_program_becomes_machine_code(tmp_path: Path) -> None:
    """On a machine without a GPU the vote compiles to PTX and machine code for sm_90."""
    program = (
        "from triton_check import compile_one; from sere.reroute.backends.triton import kernels;"
        "c = {'K': 8, 'KP': 8, 'E': 128, 'R': 16, 'KIND': 0};"
        "made = compile_one(kernels.vote, 90, c, 'i32', 'i32', 4);"
        "print('.target sm_90' in made.asm['ptx'], made.asm['cubin'][:4])"
    )
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split(maxsplit=1) == ["True", "b'\\x7fELF'\n"]
