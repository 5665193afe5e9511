"""What a model's config says before the model is built: experts of each layer, and where it was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sere.identity import first_of

_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def experts_by_layer(text_config: Any, *, mistral: bool = False) -> dict[int, int]:
    """Return the experts of each layer as far as the config says them; it may not say which layers have some.

    Args:
        text_config: The language model's config, as Transformers reads it.
        mistral: Whether vLLM made it from ``params.json``.

    Returns:
        E by decoder-layer index: of the layers with experts where the config describes each layer
        (``block_configs``), of all layers where it has a list of numbers or one number for all; empty where
        it says nothing.
    """
    blocks = getattr(text_config, "block_configs", None)
    if isinstance(blocks, Sequence) and blocks:
        found = {index: _of_block(block) for index, block in enumerate(blocks)}
        return {index: E for index, E in found.items() if E}
    given, layers = first_of(text_config, _EXPERTS), first_of(text_config, _LAYERS)
    if mistral or not isinstance(layers, int):
        return {}
    if isinstance(given, int) and given > 0:
        return dict.fromkeys(range(layers), given)
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == layers:
        return {index: E for index, E in enumerate(given) if isinstance(E, int) and E > 0}
    return {}


def _of_block(block: Any) -> int:
    """Return the experts of one described layer; 0 for none."""
    values = block if isinstance(block, Mapping) else vars(block)
    found = next((values[name] for name in _EXPERTS if values.get(name)), 0)
    return found if isinstance(found, int) and values.get("block_type") in (None, "moe") else 0


def reads_mistral_format(model_config: Any) -> bool:
    """Whether vLLM reads a model's config from Mistral's ``params.json``.

    Args:
        model_config: vLLM's ``ModelConfig``.
    """
    asked = str(getattr(model_config, "config_format", "auto"))
    if asked != "auto":
        return asked == "mistral"
    folder = Path(str(model_config.model)).expanduser()
    return (folder / "params.json").is_file() and any(folder.glob("consolidated*.safetensors"))
