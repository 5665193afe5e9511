"""Quantized checkpoints: how large one is once it is dequantized, and whether it can be loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sere.checkpoints.quiet import errors_only

_BFLOAT16_BYTES = 2


def quantization_in(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a ``config.json`` says of how weights are quantized; None for weights that are not."""
    text = described.get("text_config")
    for holder in (described, text if isinstance(text, Mapping) else {}):
        for name in ("quantization_config", "compression_config"):
            if isinstance(holder.get(name), Mapping):
                return dict(holder[name])
    return None


def dequantized_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights in bfloat16, to which Transformers dequantizes FP8 and MXFP4 on a CPU.

    Args:
        model: The model, with or without weights, not quantized.
    """
    return _BFLOAT16_BYTES * sum(one.numel() for one in model.parameters())


def why_not_loaded(quantization: Mapping[str, Any]) -> str | None:
    """Return why Transformers cannot load weights quantized like this here, or None if it says that it can.

    Its own check of packages and devices is asked; no weight is read.

    Args:
        quantization: What the checkpoint's ``config.json`` says, as from `quantization_in`.
    """
    from transformers.quantizers import AutoHfQuantizer

    try:
        with errors_only():
            if not AutoHfQuantizer.supports_quant_method(dict(quantization)):
                return "Transformers does not know it"
            quantizer = AutoHfQuantizer.from_config(dict(quantization), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # quantizers refuse what they lack with errors of every kind
        return " ".join(str(error).split()) or type(error).__name__
    method = quantizer.quantization_config
    if str(quantization.get("quant_method")) == "mxfp4" and not method.dequantize:
        return "its kernel takes routing data that it has packed already"
    return None
