"""Compile the Triton programs ahead of time for every architecture that matters; part of ``make cuda-check``.

Run ``python benchmarks/triton_check.py``. It needs Triton and no GPU: a program of one id and one weight type
becomes PTX and machine code, at Qwen3-30B-A3B's shape and at the largest one. It fails on fused multiply-adds
and on operations that flush small numbers to 0, because either changes results, and where a program uses
local memory at Qwen3-30B-A3B's shape, because that is slow. Without Triton it says so and exits with 0.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sere.reroute.constants import MERGE_DISTINCT
from sere.reroute.raw_layer import KernelConfig

ARCHITECTURES = (80, 90, 100, 120)
# K and E: Qwen3-30B-A3B's, and the largest that the programs take.
SHAPES = ((8, 128), (32, 1024))
# The recommended setting's options, so far as a program depends on them, and factors.
CONFIG = KernelConfig(cap=False, active_targets=False, merge=MERGE_DISTINCT, sentinel=0)
WHOLE = {"limits": "*i32", "budgets": "*i32", "num_tokens": "*i32", "keep": "*i1", "buffer": "*i64"}
WHOLE |= {"position": "*i16", "sensitivity": "*fp32", "substitutes": "*fp32", "counters": "*i64"}
# Each kind of weight with the integer that carries it, and the ids that it is compiled with.
KINDS = (
    ("float32", "i32", "i32"),
    ("bfloat16", "i16", "i64"),
    ("float16", "i16", "i32"),
    ("float64", "i64", "i64"),
)


def signature(program: Any, ids: str, weights: str) -> dict[str, str]:
    """Return the type of each argument; the upper-case ones but T and N are constants."""
    types = {f"{name}_p": kind for name, kind in WHOLE.items()}
    types |= {
        "ids_p": f"*{ids}",
        "new_ids_p": f"*{ids}",
        "weights_p": f"*{weights}",
        "new_weights_p": f"*{weights}",
    }
    types |= {"T": "i32", "N": "i32", "given": "i32"}
    return {name: types.get(name, "constexpr") for name in program.arg_names}


def compile_one(
    program: Any, arch: int, constants: dict[str, Any], ids: str, weights: str, warps: int
) -> Any:
    """Return the compiled program, with its ``asm`` by stage."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sere.reroute.backends.triton.launch import OPTIONS

    names = program.arg_names
    given = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = ASTSource(program, signature(program, ids, weights), given)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS | {"num_warps": warps})


def usage(code: bytes) -> dict[str, int]:
    """Return registers, stack and local bytes of machine code, from Triton's own cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(code)
        command = [str(tool), "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def faults(ptx: str, used: dict[str, int], *, common: bool) -> list[str]:
    """Return what is wrong with a program: what changes results, and at a common shape what is slow."""
    wrong = [text for text in ("fma.rn.f", ".ftz") if text in ptx]
    return wrong + (["local memory"] if common and used.get("LOCAL", 0) + used.get("STACK", 0) > 0 else [])


def main() -> int:
    """Compile all, print the table, return the exit code."""
    if find_spec("triton") is None:
        print("triton-check: Triton is not here; nothing was compiled")
        return 0
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("triton-check: expected TRITON_INTERPRET unset, got 1: nothing is compiled then")
    from sere.reroute.backends.triton import kernels
    from sere.reroute.backends.triton.launch import Shape

    rows, failed = [], False
    for arch in ARCHITECTURES if "--all" in sys.argv else (90,):
        for K, E in SHAPES:
            shape = Shape.of(K, E)
            constants = shape._asdict() | {
                "CAP": CONFIG.cap, "SCALED": True, "MERGE": CONFIG.merge, "SENTINEL": CONFIG.sentinel,
            }  # fmt: skip
            for number, (name, weights, ids) in enumerate(KINDS if SHAPES[0] == (K, E) else KINDS[:1]):
                for program in (kernels.vote, kernels.choose, kernels.retarget, kernels.apply):
                    if number > 0 and "KIND" not in program.arg_names:
                        continue
                    made = compile_one(program, arch, constants | {"KIND": number}, ids, weights, shape.warps)
                    used = usage(made.asm["cubin"])
                    wrong = faults(made.asm["ptx"], used, common=SHAPES[0] == (K, E))
                    failed |= bool(wrong)
                    kind = name if "KIND" in program.arg_names else ""
                    sizes = (used.get("REG"), made.metadata.shared, used.get("STACK"), len(made.asm["cubin"]))
                    rows.append([f"sm_{arch}", K, E, program.__name__, kind, *sizes, ", ".join(wrong)])
    headers = ["arch", "K", "E", "program", "weights", "registers", "shared", "stack", "code bytes", "wrong"]
    print(tabulate(rows, headers))
    print(
        "FAILED" if failed else "no fused multiply-add, nothing flushed to 0, no local memory at K=8, E=128"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
