"""Compile the kernel for every architecture that matters; fail on spills, stack or too many instructions.

Run ``python benchmarks/cuda_check.py``. Uses nvcc, NVRTC (through cuda-core), or both; needs no GPU. If
neither is installed, it says so and exits with 0.

With nvdisasm it also counts instructions in the machine code for sm_90, including both sides of a branch,
and fails if an entry has more than ``BUDGET``. It prints the counts of entries with int32 ids. They are not
times.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from tabulate import tabulate

from sere.reroute.backends.cuda.compiler import compile_source
from sere.reroute.backends.cuda.launch import SOURCE, entries

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# One entry in ptxas's report; NVRTC's has a word more on the stack line.
REPORT = re.compile(
    r"Function properties for (?P<entry>reroute_\w+).*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers.*?(?P<shared>\d+) bytes smem",
    re.DOTALL,
)
COUNTED = "sm_90"
# Most instructions of an entry with int32 or int64 ids; docs/measurements.md says what each hundred bought.
BUDGET = 1824
Compile = Callable[[str], tuple[str, bytes]]


def with_nvcc(arch: str) -> tuple[str, bytes]:
    """Return the assembler's report and the machine code, from nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "kernel.cubin")
        command = ["nvcc", "-std=c++17", "--fmad=false", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
        run = subprocess.run(
            [*command, "-o", target, str(SOURCE)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(run.stdout + run.stderr)
        return run.stdout + run.stderr, Path(target).read_bytes()


def with_nvrtc(arch: str) -> tuple[str, bytes]:
    """Return the assembler's report and the machine code, from NVRTC."""
    log = io.StringIO()
    code = compile_source(arch, logs=log, ptxas_options="-v")
    return log.getvalue(), code


def compilers() -> dict[str, tuple[Compile, set[str]]]:
    """Return what can compile here, each with the architectures that it knows."""
    found: dict[str, tuple[Compile, set[str]]] = {}
    if shutil.which("nvcc"):
        listed = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
        found["nvcc"] = (with_nvcc, set(listed.stdout.split()))
    if find_spec("cuda") and find_spec("cuda.core"):
        try:
            import_module("cuda.core")
            nvrtc = import_module("cuda.bindings.nvrtc")
            error, known = nvrtc.nvrtcGetSupportedArchs()
        except (ImportError, RuntimeError) as why:
            raise SystemExit(f"cuda-check: cuda-core is installed but does not work here: {why}") from why
        if int(error) == 0:
            found["nvrtc"] = (with_nvrtc, {f"sm_{number}" for number in known})
    return found


def check(name: str, report: str, arch: str) -> tuple[list[object], bool]:
    """Return a row of the table, and whether nothing was spilled."""
    kernels = [match.groupdict() for match in REPORT.finditer(report)]
    if {kernel["entry"] for kernel in kernels} != set(entries()):
        return [name, arch, "not every entry reported", "", "", "", ""], False
    most = {key: max(int(kernel[key]) for kernel in kernels) for key in kernels[0] if key != "entry"}
    spilled = most["stores"] + most["loads"]
    row = [name, arch, len(kernels), most["registers"], most["shared"], most["stack"], spilled]
    return row, most["stack"] == 0 and spilled == 0


def disassembler() -> str | None:
    """Return nvdisasm: the one on the PATH, or the one that Triton brings along."""
    triton = find_spec("triton")
    folder = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else None
    return shutil.which("nvdisasm") or (shutil.which("nvdisasm", path=str(folder)) if folder else None)


def disassemble(tool: str, code: bytes) -> dict[str, list[str]]:
    """Return the instructions of each entry, in the order of the code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(reroute_\w+):$", text, flags=re.MULTILINE)[1:]
    return {
        entry: re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", body, re.MULTILINE)
        for entry, body in zip(parts[::2], parts[1::2], strict=True)
    }


def count(code: list[str]) -> list[object]:
    """Return what the table of counts says of an entry."""
    barriers = [i for i, line in enumerate(code) if "BAR.SYNC" in line]
    pieces = [end - start for start, end in pairwise([0, *barriers, len(code)])]
    loads = [i for i, line in enumerate(code) if "LDG" in line]
    ahead = [i for i in loads if i < barriers[0]]
    waits = [i for i in range(ahead[0], len(code)) if _looks_at(code[i], [code[j] for j in ahead if j < i])]
    wide = sum(bool(re.search(r"\bD(ADD|MUL|FMA|SETP)\b", line)) for line in code)
    slow = sum(bool(re.search(r"\b(LDL|STL|CALL)\b", line)) for line in code)
    before = f"{sum(i < waits[0] for i in ahead)} of {len(ahead)}"
    return [len(code), " ".join(map(str, pieces)), before, len(loads) - len(ahead), wide, slow]


def _looks_at(line: str, loads: list[str]) -> bool:
    """Whether an instruction reads a register that one of the loads fills."""
    filled = set()
    for load in loads:
        first = re.search(r"LDG\S*\s+R(\d+)", load)
        assert first is not None
        words = 4 if ".128" in load else 2 if ".64 " in load.split(",")[0] else 1
        filled |= {int(first[1]) + i for i in range(words)}
    operands = line.split(None, 1)[-1].split(",")
    sources = ",".join(operands if "ST" in line else operands[1:])
    return bool(filled & {int(number) for number in re.findall(r"\bR(\d+)\b", sources)})


def print_counts(name: str, entries_code: Mapping[str, list[str]]) -> bool:
    """Print the table of counts, and return whether every entry is within the budget."""
    rows = [
        [name, entry.removeprefix("reroute_"), *count(lines)]
        for entry, lines in sorted(entries_code.items())
        if "int32" in entry
    ]
    over = [entry for entry, lines in sorted(entries_code.items()) if len(lines) > BUDGET]
    headers = [
        "compiler", "entry", "instructions", "between barriers", "loads ahead", "later", "float64", "slow",
    ]  # fmt: skip
    print(f"\ncounted in the machine code for {COUNTED}, not measured")
    print(tabulate(rows, headers))
    print(
        "loads ahead: before the first barrier, and how many of them before the first look at one; "
        "slow: local memory and calls"
    )
    print(
        f"FAILED: over {BUDGET} instructions: {', '.join(over)}" if over else f"at most {BUDGET} instructions"
    )
    return not over


def main() -> int:
    """Compile all, print the tables, return the exit code."""
    found = compilers()
    if not found:
        print("cuda-check: neither nvcc nor cuda-core with NVRTC is here; nothing was compiled")
        return 0
    rows: list[list[object]] = []
    codes: dict[str, bytes] = {}
    passed = True
    for name, (compile_for, known) in found.items():
        for arch in ARCHITECTURES:
            if arch not in known:
                rows.append([name, arch, "not known to this compiler", "", "", "", ""])
                continue
            report, code = compile_for(arch)
            row, well = check(name, report, arch)
            codes |= {name: code} if arch == COUNTED else {}
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
    tool = disassembler()
    for name, code in codes.items() if tool else ():
        passed &= print_counts(name, disassemble(str(tool), code))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
