"""Whether a complete checkpoint can be loaded and calibrated in the available memory."""

from __future__ import annotations

from pathlib import Path

import torch

from sere.checkpoints import empty_model, find_weights
from sere.checkpoints.quantization import dequantized_bytes, quantization_in
from sere.checkpoints.weight_files import read_json

SHARE_OF_MEMORY = 0.7
"""Loading and calibrating needs more than the weights: activations, one chunk of outputs, the system."""
LEAST_ROOM = 2**30
"""Bytes that it needs besides in any case: the program, embeddings, one chunk of outputs."""


def with_room(num_bytes: int) -> int:
    """Return the bytes of memory for weights of so many bytes and what calibrating needs besides."""
    return max(round(num_bytes / SHARE_OF_MEMORY), num_bytes + LEAST_ROOM)


def available_memory() -> int | None:
    """Return the bytes of memory that are available now, or None where psutil is not installed."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def free_memory(device: str) -> int | None:
    """Return the bytes of memory that a device has free now, or None where that is not known.

    Args:
        device: ``"cpu"`` for the machine's own memory, or another device.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return available_memory()
    return int(torch.cuda.mem_get_info(device)[0]) if kind == "cuda" else None


def has_room(device: str, needs: int, *, loading: int) -> bool | None:
    """Return whether so much memory is free now, or None where that is not known.

    Args:
        device: Where it is needed.
        needs: Bytes.
        loading: Bytes that the machine's own memory must hold before they go to another device.
    """
    own, free = available_memory(), free_memory(device)
    if torch.device(device).type != "cpu" and own is not None and loading > own:
        return False
    return None if free is None else needs <= free


def fits_memory(folder: Path, *, device: str = "cpu", trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint's weights leave room to calibrate in the memory that is available now.

    Quantized weights count in bfloat16 on a CPU, where Transformers dequantizes FP8 and MXFP4. For another
    device, the machine's own memory must hold the weights as well, while they are loaded.

    Args:
        folder: The checkpoint folder.
        device: Where it is to be calibrated.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Raises:
        InputError: The weights are missing, or the config does not describe a model.
        UnsupportedModel: The checkpoint is quantized, and Transformers has no class for it.
    """
    if free_memory(device) is None:
        return True
    needed = stored = find_weights(folder).num_bytes
    quantized = quantization_in(read_json(folder / "config.json")) is not None
    if quantized and torch.device(device).type == "cpu":
        needed = max(needed, dequantized_bytes(empty_model(folder, trust_remote_code=trust_remote_code)))
    return has_room(device, with_room(needed), loading=stored) is not False
