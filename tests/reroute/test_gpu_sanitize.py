"""compute-sanitizer on the kernel, on a GPU: slow, so apart from the rest (``make gpu-sanitize``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from sere.reroute.backends.cuda.launch import entries
from tests.support.batches import NO_DEVICE
from tests.support.hazards import unexpected_hazards

SANITIZER = shutil.which("compute-sanitizer")
# Only our kernels: PyTorch's own are many, and each that is watched takes seconds.
FILTER = "reroute_"
# Three tools in ten minutes, which may be all that one command has there.
TOOL_S = 190


def command(tool: str) -> list[str]:
    """Return the sanitizer's command line without the program.

    PyTorch and the driver ask for symbols and devices that may not be there: such calls are no errors here.
    """
    options = ["--report-api-errors", "no", "--kernel-name", f"kns={FILTER}"]
    # Racecheck's own count includes what is expected: its reports are read one by one.
    options += ["--racecheck-report", "hazard"] if tool == "racecheck" else ["--error-exitcode", "86"]
    # A machine that has just started may take minutes to read PyTorch in.
    return [str(SANITIZER), "--tool", tool, "--launch-timeout", "300", *options]


def test_the_filter_takes_every_entry() -> None:
    """No entry of the source escapes the sanitizer for its name."""
    assert all(FILTER in entry for entry in entries())


HAZARD = """========= {level}: Potential {kind} hazard detected at __shared__ 0x1234 in block (0,0,0) :
=========     {first} Thread (0,0,0) at 0x70 in reroute_int32_float32
=========     Write Thread (1,0,0) at 0x70 in reroute_int32_float32
=========     Current Value : {old}, Incoming Value : 1
=========
"""
SAME = {"level": "Warning", "kind": "WAW", "first": "Write", "old": "1"}


@pytest.mark.parametrize(
    "other",
    [{"old": "0"}, {"kind": "RAW", "first": "Read"}, {"kind": "WAR", "first": "Read"}],
    ids=["another value", "read after write", "write after read"],
)
def test_only_stores_of_the_same_value_are_expected(other: dict[str, str]) -> None:
    """Marks are stored by several threads at once; any other hazard between them is named."""
    text = HAZARD.format(**SAME) + HAZARD.format(**SAME | other) + HAZARD.format(**SAME)
    (found,) = unexpected_hazards(text)
    assert found == HAZARD.format(**SAME | other)
    assert unexpected_hazards(HAZARD.format(**SAME) * 3) == []


def test_a_hazard_of_another_form_is_not_expected() -> None:
    """Without the values nobody knows that they are the same."""
    text = HAZARD.format(**SAME).replace("Current Value", "Value")
    assert unexpected_hazards(text) == [text]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_DEVICE)
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    """compute-sanitizer finds nothing in a call of every option."""
    # In PyTorch's pool a read past a tensor's end is still in somebody's memory.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    program = [sys.executable, "-m", "tests.support.sanitized"]
    run = subprocess.run(
        command(tool) + program, env=environment, capture_output=True, text=True, check=False, timeout=TOOL_S
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert "done" in run.stdout
    if tool == "racecheck":
        assert "RACECHECK SUMMARY" in run.stdout
        assert unexpected_hazards(run.stdout) == []
    else:
        assert "ERROR SUMMARY: 0 errors" in run.stdout
