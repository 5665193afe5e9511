"""The ``cuda`` backend: docs/method.md section 4 as one kernel launch, compiled at first use.

``docs/kernel.md`` explains the kernel. Nothing here imports cuda-core before a tensor is on a GPU.
"""

from __future__ import annotations

from sere.reroute.backends.cuda.device import run, why_not
from sere.reroute.backends.cuda.layer import Layer, prepare

__all__ = ["Layer", "prepare", "run", "why_not"]
