"""What a model's config says, without its weights: engines that take it, its layers, its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sere.checkpoints import empty_model, find_weights
from sere.checkpoints.quantization import dequantized_bytes, quantization_in, why_not_loaded
from sere.checkpoints.weight_files import read_json
from sere.errors import InputError, MissingDependency, UnsupportedModel
from sere.identity import ModelIdentity
from sere.integrations.vllm.start.model_config import experts_by_layer
from sere.outlook.engines import ask_vllm
from sere.policies.base import LayerShape
from sere.step_time import StepWeights
from sere.structure import TOP_K_SETTINGS, find_experts, identity_of

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Unprepared:
    """A model as its config describes it.

    Attributes:
        folder: Where its config is.
        transformers: None if Transformers can calibrate and re-route it, else why not.
        vllm: True if the installed vLLM has its architecture, False if not, None if that is not known.
        vllm_detail: The reason.
        quantization: What the config says, such as ``"fp8"``; None for a model that is not quantized.
        shapes: Its MoE layers; empty if they are not known.
        weights: Its weights as a step reads them; None if they are not known.
        num_bytes: Bytes of all weights; None if they are not known.
        dtype: Of the weights that are not quantized, such as ``"bfloat16"``; None if not known.
        identity: Which model it is; None if Transformers cannot build it.
        brings_code: Whether the folder brings Python code of its own for the model.
        exact: Whether ``num_bytes`` is the files' size; otherwise it is computed from the config.
        layer_bytes: Bytes of the largest decoder layer's experts; None if not known.
        dequantized_bytes: Bytes of all weights in bfloat16; None for a model that is not quantized, or that
            Transformers cannot build.
        not_loaded: Why Transformers cannot load weights that are quantized like this here; None if it can.
        attention_heads: Heads of queries; None if the config does not say.
    """

    folder: Path
    transformers: str | None
    vllm: bool | None
    vllm_detail: str
    quantization: str | None
    shapes: tuple[LayerShape, ...]
    weights: StepWeights | None
    num_bytes: int | None
    dtype: str | None
    identity: ModelIdentity | None
    brings_code: bool
    exact: bool
    layer_bytes: float | None
    dequantized_bytes: int | None = None
    not_loaded: str | None = None
    attention_heads: int | None = None

    @property
    def has_experts(self) -> bool:
        """Whether the config describes a Mixture-of-Experts model, whichever engine takes it."""
        return bool(self.shapes)

    @property
    def may_be_served(self) -> bool:
        """Whether it has experts, and vLLM has its architecture or is not there to be asked.

        A model whose code Transformers would run if it were trusted does not count as one that only vLLM
        knows, unless vLLM says so.
        """
        return self.has_experts and (self.vllm is True or (self.vllm is None and not self.brings_code))


def look_at(folder: Path, *, trust_remote_code: bool = False) -> Unprepared:
    """Return what a checkpoint's config says; no weight is read.

    Args:
        folder: The checkpoint folder; it needs no weights.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Raises:
        InputError: ``config.json`` is damaged or does not describe a model.
    """
    described = read_json(folder / "config.json")
    vllm, detail = ask_vllm([str(name) for name in described.get("architectures") or ()])
    quantization = quantization_of(described)
    measured = _bytes_on_disk(folder)
    shapes: tuple[LayerShape, ...] = ()
    weights = reason = layer_bytes = dtype = identity = unpacked = not_loaded = None
    num_bytes = measured
    try:
        model = empty_model(folder, trust_remote_code=trust_remote_code)
        layers = find_experts(model)
    except (UnsupportedModel, MissingDependency) as error:
        reason = str(error)
        shapes = shapes_of_config(described)
    else:
        shapes = tuple(LayerShape(one.index, one.num_experts, one.top_k) for one in layers)
        plain = StepWeights.of(model)
        everything = sum(one.numel() * one.element_size() for one in model.parameters())
        weights = (
            plain if quantization is None else _quantized(plain, shapes, everything, measured, described)
        )
        saved = sum(shape.num_experts for shape in shapes) * (plain.expert_bytes - weights.expert_bytes)
        num_bytes = measured or round(everything - saved)
        dtype = str(next(layers[0].module.parameters()).dtype).removeprefix("torch.")
        identity = identity_of(model, layers)
        layer_bytes = max(shape.num_experts for shape in shapes) * weights.expert_bytes
        if (config := quantization_in(described)) is not None:
            unpacked, not_loaded = dequantized_bytes(model), why_not_loaded(config)
    return Unprepared(
        folder, reason, vllm, detail, quantization, shapes, weights, num_bytes, dtype, identity,
        "auto_map" in described, measured is not None, layer_bytes, unpacked, not_loaded,
        attention_heads_of(described),
    )  # fmt: skip


def quantization_of(described: Mapping[str, Any]) -> str | None:
    """Return how a ``config.json`` says that weights are quantized, or None."""
    found = quantization_in(described)
    return None if found is None else str(found.get("quant_method") or found.get("quant_algo") or "unknown")


def shapes_of_config(described: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    """Return the MoE layers that a ``config.json`` describes; none if it does not say E and K.

    A model's first layers may be dense, which not every config says: then they are among these, too.
    """
    text = described.get("text_config")
    values = SimpleNamespace(**(text if isinstance(text, Mapping) else described))
    named = (getattr(values, name, None) for name in TOP_K_SETTINGS)
    top_k = next((value for value in named if isinstance(value, int)), 0)
    found = experts_by_layer(values)
    dense = getattr(values, "first_k_dense_replace", 0) or 0
    return (
        tuple(LayerShape(index, E, top_k) for index, E in found.items() if E > 1 and index >= dense)
        if top_k
        else ()
    )


def attention_heads_of(described: Mapping[str, Any]) -> int | None:
    """Return the attention heads of queries that a ``config.json`` names, or None."""
    text = described.get("text_config")
    values = text if isinstance(text, Mapping) else described
    found = next((values[name] for name in ("num_attention_heads", "n_head", "n_heads") if name in values), 0)
    return found if isinstance(found, int) and found > 0 else None


def _quantized(
    plain: StepWeights,
    shapes: Sequence[LayerShape],
    everything: int,
    measured: int | None,
    described: Mapping[str, Any],
) -> StepWeights:
    """Return the weights of a quantized checkpoint: its experts have what the others leave of its bytes."""
    experts = sum(shape.num_experts for shape in shapes)
    others = everything - experts * plain.expert_bytes
    own = plain.expert_params * bits_of(described) / 8
    if measured is not None and measured > others:
        own = (measured - others) / experts
    return StepWeights(plain.rest_bytes, own, plain.layers, plain.rest_params, plain.expert_params)


def bits_of(described: Mapping[str, Any]) -> float:
    """Return the bits of a quantized weight that a ``config.json`` tells of: 4 with their scales, or 8."""
    found = quantization_in(described) or {}
    text = str(found).lower()
    bits = found.get("bits") or found.get("w_bit") or found.get("num_bits")
    if isinstance(bits, int):
        return float(bits)
    four = any(word in text for word in ("fp4", "int4", "'num_bits': 4", "4bit': true", "w4a16"))
    return 4.25 if four else 8.0


def _bytes_on_disk(folder: Path) -> int | None:
    """Return the bytes of a checkpoint's weights, from its files or their index; None if neither is there."""
    try:
        return find_weights(folder).num_bytes
    except (InputError, OSError):
        pass
    try:
        total = read_json(folder / _INDEX)["metadata"]["total_size"]
    except (InputError, KeyError, TypeError):
        return None
    return int(total) if isinstance(total, int | float) else None
