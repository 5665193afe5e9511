"""The ``triton`` backend: docs/method.md section 4 in three launches, for a GPU without cuda-core.

Each PyTorch for CUDA brings Triton along. Nothing here imports it before a step runs or is tried.
"""

from __future__ import annotations

from sere.reroute.backends.torch_ops import Layer
from sere.reroute.backends.triton.launch import run, why_not
from sere.reroute.backends.triton.layer import prepare

__all__ = ["Layer", "prepare", "run", "why_not"]
