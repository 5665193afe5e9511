"""Whether a complete checkpoint can be loaded and calibrated in the available memory."""

from __future__ import annotations

from pathlib import Path

from sere.checkpoints import find_weights

SHARE_OF_MEMORY = 0.7
"""Loading and calibrating needs more than the weights: activations, one chunk of outputs, the system."""


def available_memory() -> int | None:
    """Return the bytes of memory that are available now, or None where psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def fits_memory(folder: Path) -> bool:
    """Whether a checkpoint's weights leave room to calibrate in the memory that is available now."""
    available = available_memory()
    return available is None or find_weights(folder).num_bytes <= SHARE_OF_MEMORY * available
