"""The settings that commands measure if none is given."""

from __future__ import annotations

DEFAULT = "sere"
"""All defaults: what ``sere.apply`` and vLLM do without settings."""

CONTROLS = ("random:select_top_k=1", "topk:select_top_k=1")
"""What the default must beat: as many experts without similarities, and fewer slots without re-routing."""
