"""The settings that commands measure if none is given."""

from __future__ import annotations

DEFAULT = "sere"
"""All defaults: what ``sere.apply`` and vLLM do without settings."""

CONTROLS = ("random", "drop")
"""What the default must beat at as many experts: a target by chance, and no target at all."""
