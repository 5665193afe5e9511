"""The ``cuda`` backend: docs/method.md section 4 as one kernel launch, compiled at first use.

``docs/kernel.md`` explains the kernel. Nothing here imports cuda-core before a tensor is on a GPU.
"""

from __future__ import annotations

from sere.reroute.backends.cuda.device import run, why_not

__all__ = ["run", "why_not"]
