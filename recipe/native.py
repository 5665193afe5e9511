"""Builds and loads ``experts.cpp``; without a C++ compiler the recipe runs on torch alone, slower."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("experts.cpp")


class Library:
    """The compiled forward and backward; arguments as in ``recipe.experts``."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))

    @staticmethod
    def _arguments(tensors: tuple[Tensor, ...], gate_up: Tensor, tokens: int) -> list[object]:
        experts, double, width = gate_up.shape
        sizes = [ctypes.c_int64(n) for n in (tokens, experts, width, double // 2)]
        return [*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *sizes]

    def forward(
        self, x: Tensor, rows: Tensor, gates: Tensor, start: Tensor, gate_up: Tensor, down: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output and the hidden units."""
        hidden, out = x.new_empty(len(rows), gate_up.shape[1]), torch.zeros_like(x)
        tensors = (x, rows, gates, start, gate_up, down, hidden, out)
        self._library.experts_forward(*self._arguments(tensors, gate_up, len(x)))
        return out, hidden

    def backward(
        self,
        x: Tensor,
        dout: Tensor,
        rows: Tensor,
        gates: Tensor,
        start: Tensor,
        gate_up: Tensor,
        down: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of x, gates and both weights."""
        dx, dgates = torch.zeros_like(x), torch.zeros_like(gates)
        dgate_up, ddown = torch.zeros_like(gate_up), torch.zeros_like(down)
        tensors = (x, dout, rows, gates, start, gate_up, down, hidden, dx, dgates, dgate_up, ddown)
        self._library.experts_backward(*self._arguments(tensors, gate_up, len(x)))
        return dx, dgates, dgate_up, ddown


@cache
def load() -> Library | None:
    """Return the compiled library, or None where there is no compiler or ``RECIPE_NO_COMPILER`` is set."""
    compiler = shutil.which("g++")
    if compiler is None or os.environ.get("RECIPE_NO_COMPILER"):
        return None
    torch_home = Path(torch.__file__).parent
    target = Path(tempfile.mkdtemp(prefix="recipe-")) / "experts.so"
    command = [
        compiler, "-std=c++20", "-O3", "-march=native", "-ffast-math", "-fopenmp", "-DAT_PARALLEL_OPENMP=1",
        "-shared", "-fPIC", str(SOURCE), "-o", str(target),
        f"-I{torch_home / 'include'}", f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"experts.cpp does not compile here, going on without it: {done.stderr.strip()[:300]}")
        return None
    return Library(target)
