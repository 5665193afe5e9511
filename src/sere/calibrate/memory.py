"""Whether a complete checkpoint can be loaded and calibrated in the available memory."""

from __future__ import annotations

from pathlib import Path

from sere.checkpoints import empty_model, find_weights
from sere.checkpoints.quantization import dequantized_bytes, quantization_in
from sere.checkpoints.weight_files import read_json

SHARE_OF_MEMORY = 0.7
"""Loading and calibrating needs more than the weights: activations, one chunk of outputs, the system."""


def available_memory() -> int | None:
    """Return the bytes of memory that are available now, or None where psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def fits_memory(folder: Path, *, device: str = "cpu", trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint's weights leave room to calibrate in the memory that is available now.

    Quantized weights count in bfloat16 on a CPU, where Transformers dequantizes FP8 and MXFP4.

    Args:
        folder: The checkpoint folder.
        device: Where it is to be calibrated.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Raises:
        InputError: The weights are missing, or the config does not describe a model.
        UnsupportedModel: The checkpoint is quantized, and Transformers has no class for it.
    """
    available = available_memory()
    if available is None:
        return True
    needed = find_weights(folder).num_bytes
    if device == "cpu" and quantization_in(read_json(folder / "config.json")) is not None:
        model = empty_model(folder, trust_remote_code=trust_remote_code)
        needed = max(needed, dequantized_bytes(model))
    return needed <= SHARE_OF_MEMORY * available
