"""Builds and loads ``experts.cpp``; without a C++ compiler the recipe runs on torch alone, slower."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from recipe.products import Gradients, Slots

SOURCE = Path(__file__).with_name("experts.cpp")


class Library:
    """The compiled forward and backward; arguments and results as in ``recipe.products``."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))

    def forward(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """Return the output and the hidden units."""
        hidden = slots.x.new_empty(len(slots.rows), slots.gate_up.shape[1])
        out = torch.zeros_like(slots.x)
        self._library.experts_forward(*_arguments((*slots, hidden, out), slots))
        return out, hidden

    def backward(self, slots: Slots, dout: Tensor, hidden: Tensor) -> Gradients:
        """Return the gradients."""
        found = Gradients.zeros(slots)
        tensors = (slots.x, dout, *slots[1:], hidden, *found)
        self._library.experts_backward(*_arguments(tensors, slots))
        return found


def _arguments(tensors: Sequence[Tensor], slots: Slots) -> list[object]:
    """Return the tensors' addresses and the sizes, as the functions of ``experts.cpp`` take them."""
    experts, double, width = slots.gate_up.shape
    sizes = [ctypes.c_int64(n) for n in (len(slots.x), experts, width, double // 2)]
    return [*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *sizes]


# What -ffast-math allows, flag by flag. That flag itself would also link start-up code: the process that
# loads the library would then read and write every subnormal number as 0, in everything that it computes.
_FAST_MATH = (
    "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math",
    "-ffinite-math-only", "-fcx-limited-range", "-fexcess-precision=fast",
)  # fmt: skip


@cache
def load() -> Library | None:
    """Return the compiled library, or None where there is no compiler or ``RECIPE_NO_COMPILER`` is set."""
    compiler = shutil.which("g++")
    if compiler is None or os.environ.get("RECIPE_NO_COMPILER"):
        return None
    torch_home = Path(torch.__file__).parent
    target = Path(tempfile.mkdtemp(prefix="recipe-")) / "experts.so"
    command = [
        compiler, "-std=c++20", "-O3", "-march=native", *_FAST_MATH, "-fopenmp", "-DAT_PARALLEL_OPENMP=1",
        "-shared", "-fPIC", str(SOURCE), "-o", str(target),
        f"-I{torch_home / 'include'}", f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"experts.cpp does not compile here, going on without it: {done.stderr.strip()[:300]}")
        return None
    return Library(target)
