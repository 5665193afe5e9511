"""Compile the kernel for every architecture that matters; fail on spilled registers or stack.

Run ``python benchmarks/cuda_check.py``. Uses nvcc, NVRTC (through cuda-core), or both, whichever is there;
needs no GPU. Where neither is there it says so and ends well.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tabulate import tabulate

from sere.reroute.cuda.compiler import compile_source
from sere.reroute.cuda.launch import SOURCE, entries

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# One entry in ptxas's report; NVRTC's has a word more on the stack line.
REPORT = re.compile(
    r"Function properties for (?P<entry>reroute_\w+).*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers.*?(?P<shared>\d+) bytes smem",
    re.DOTALL,
)
Compile = Callable[[str], str]


def with_nvcc(arch: str) -> str:
    """Return the assembler's report, from nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "kernel.cubin")
        command = ["nvcc", "-std=c++17", "--fmad=false", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
        run = subprocess.run(
            [*command, "-o", target, str(SOURCE)], capture_output=True, text=True, check=False
        )
    if run.returncode != 0:
        raise RuntimeError(run.stdout + run.stderr)
    return run.stdout + run.stderr


def with_nvrtc(arch: str) -> str:
    """Return the assembler's report, from NVRTC."""
    log = io.StringIO()
    compile_source(arch, logs=log, ptxas_options="-v")
    return log.getvalue()


def compilers() -> dict[str, tuple[Compile, set[str]]]:
    """Return what can compile here, each with the architectures that it knows."""
    found: dict[str, tuple[Compile, set[str]]] = {}
    if shutil.which("nvcc"):
        listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
        found["nvcc"] = (with_nvcc, set(listed.stdout.split()))
    if find_spec("cuda") and find_spec("cuda.core"):
        from cuda.bindings import nvrtc

        error, known = nvrtc.nvrtcGetSupportedArchs()
        if int(error) == 0:
            found["nvrtc"] = (with_nvrtc, {f"sm_{number}" for number in known})
    return found


def check(name: str, compile_for: Compile, arch: str) -> tuple[list[object], bool]:
    """Return a row of the table and whether it is well."""
    kernels = [match.groupdict() for match in REPORT.finditer(compile_for(arch))]
    if {kernel["entry"] for kernel in kernels} != set(entries()):
        return [name, arch, "not every entry reported", "", "", "", ""], False
    most = {key: max(int(kernel[key]) for kernel in kernels) for key in kernels[0] if key != "entry"}
    spilled = most["stores"] + most["loads"]
    row = [name, arch, len(kernels), most["registers"], most["shared"], most["stack"], spilled]
    return row, most["stack"] == 0 and spilled == 0


def main() -> int:
    """Compile all, print a table, return the exit code."""
    found = compilers()
    if not found:
        print("cuda-check: neither nvcc nor cuda-core with NVRTC is here; nothing was compiled")
        return 0
    rows: list[list[object]] = []
    passed = True
    for name, (compile_for, known) in found.items():
        for arch in ARCHITECTURES:
            if arch not in known:
                rows.append([name, arch, "not known to this compiler", "", "", "", ""])
                continue
            row, well = check(name, compile_for, arch)
            rows.append(row)
            passed &= well
    headers = [
        "compiler",
        "arch",
        "entries",
        "registers, most",
        "shared bytes",
        "stack bytes",
        "spilled bytes",
    ]
    print(tabulate(rows, headers))
    print("no spills, no stack" if passed else "FAILED: an entry spills, uses stack or is missing")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
