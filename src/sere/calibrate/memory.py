"""Whether a complete checkpoint can be loaded and calibrated in the available memory."""

from __future__ import annotations

from pathlib import Path

from sere.checkpoints import find_weights

# Loading and calibrating needs more than the weights: activations, one chunk of outputs, the system.
_SHARE_OF_MEMORY = 0.7


def fits_memory(folder: Path) -> bool:
    """Whether a checkpoint's weights leave room to calibrate in the memory that is available now."""
    try:
        import psutil
    except ImportError:
        return True
    return find_weights(folder).num_bytes <= _SHARE_OF_MEMORY * int(psutil.virtual_memory().available)
