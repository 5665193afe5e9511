"""The common suite through NVRTC and cuda-core, with a driver that runs the kernel on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shim import driver

HERE = Path(__file__).parent
SUITE = (
    "driven.py",
    "test_backends.py",
    "test_prepare.py",
    "test_weights.py",
    "test_worked_example.py",
    "test_operator.py",
    "test_properties.py",
    "test_what_does_not_matter.py",
)


@pytest.mark.skipif(driver.why_not() is not None, reason=str(driver.why_not()))
def test_common_suite_through_cuda_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled by NVRTC, launched by cuda-core: the reference's results, in a process that ends well."""
    monkeypatch.setenv("SERE_CACHE_DIR", str(tmp_path))
    files = [str(HERE / file) for file in SUITE]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.shim.driver", "-k", "shim", *files]
    run = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert list(tmp_path.glob("reroute_int32_float32-sm_90-*.cubin"))
