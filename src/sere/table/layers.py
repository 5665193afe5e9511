"""The layers of a table: as named tensors, checked against the model, and what is known of each expert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sere.errors import InputError, TableError, name_some
from sere.identity import ModelIdentity, summary
from sere.similarity import METRICS, LayerSimilarity

_NAME = re.compile(r"layers\.(\d+)\.(similarity|scale|sensitivity)")
# For these metrics, files of format version 1 hold 0 for a similarity that is not known.
_ZERO_MEANT_UNKNOWN = ("projection", "weights", "cka", "cka_linear", "cka_rbf", "cka_polynomial")


def to_tensors(layers: Mapping[int, LayerSimilarity]) -> dict[str, Tensor]:
    """Return the tensors of all layers by the names that they have in a file.

    Args:
        layers: Similarities by decoder-layer index.

    Returns:
        ``layers.{index}.similarity`` and, for layers that have them, ``layers.{index}.scale`` and
        ``layers.{index}.sensitivity``; on the CPU.
    """
    named: dict[str, Tensor] = {}
    for index, layer in layers.items():
        named[f"layers.{index}.similarity"] = layer.similarity.cpu().contiguous()
        if layer.scale is not None:
            named[f"layers.{index}.scale"] = layer.scale.cpu().contiguous()
        if layer.sensitivity is not None:
            named[f"layers.{index}.sensitivity"] = layer.sensitivity.cpu().contiguous()
    return named


def from_tensors(named: Mapping[str, Tensor]) -> dict[int, LayerSimilarity]:
    """Return the layers that `to_tensors` turned into tensors.

    Raises:
        TableError: A name is unknown, a similarity is missing, or a value is invalid; the text names the
            layer.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise TableError(
                f"expected tensors named layers.<index>.similarity, .scale or .sensitivity, got {name!r}; "
                "calibrate again"
            )
        parts.setdefault(int(match[1]), {})[match[2]] = tensor
    return {index: _layer(index, part) for index, part in parts.items()}


def check_layers(layers: Mapping[int, LayerSimilarity], identity: ModelIdentity) -> None:
    """Refuse layers that do not belong to a model of this identity.

    Raises:
        TableError: Missing or extra layers, another number of experts, or an identity matrix; the text names
            the layer.
    """
    if set(layers) != set(identity.layer_names) or not layers:
        raise TableError(
            f"similarities exist for layers [{name_some(sorted(layers))}], but {summary(identity)} has its "
            f"experts in layers [{name_some(sorted(identity.layer_names))}]; calibrate again"
        )
    for index, layer in layers.items():
        E = identity.experts.get(index)
        if layer.num_experts != E:
            raise TableError(
                f"layer {index}: expected E = {E} experts as in {summary(identity)}, "
                f"got {layer.num_experts}; calibrate again"
            )
        # Of two experts, each is the other's farthest, so 0 can be right. NaN (not known) is not 0.
        if layer.num_experts > 2 and not bool(layer.similarity.clone().fill_diagonal_(0).any()):
            raise TableError(
                f"layer {index}: expected similarities, got the identity matrix, which means that they "
                "are missing (every token would go to the lowest primary expert); calibrate again"
            )


def best_neighbors(similarity: Tensor) -> Tensor:
    """Return each expert's similarity to the other expert that resembles it most; ``[E]``, float32.

    NaN for an expert whose similarity to no other is known.

    Args:
        similarity: ``[E, E]``.
    """
    best = similarity.nan_to_num(nan=-1).fill_diagonal_(-1).max(dim=1).values
    return best.masked_fill(best == -1, torch.nan)


def critical_experts(similarity: Tensor, threshold: float) -> tuple[int, ...]:
    """Return the experts without another whose similarity is known to be at least ρ (``threshold``)."""
    best = best_neighbors(similarity)
    least = torch.tensor(threshold, dtype=torch.float32, device=best.device)
    return tuple((~(best >= least)).nonzero().flatten().tolist())


def off_diagonal(similarity: Tensor) -> Tensor:
    """Return the known similarities of pairs of different experts, flat; none for a single expert.

    Args:
        similarity: ``[E, E]``.
    """
    others = similarity[~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)]
    return others[~others.isnan()]


def describe_unknown(layers: Mapping[int, LayerSimilarity], metric: str) -> str | None:
    """Return one sentence on how many experts have no known similarity to any other; None if all have one.

    Args:
        layers: Similarities by decoder-layer index.
        metric: The metric's name, which tells why.
    """
    counts = {index: len(layer.unknown) for index, layer in layers.items() if layer.unknown}
    if not counts:
        return None
    named = [f"{count} of {layers[index].num_experts} in layer {index}" for index, count in counts.items()]
    why = METRICS[metric].unknown if metric in METRICS else ""
    total = sum(layer.num_experts for layer in layers.values())
    return (
        f"{sum(counts.values()):,} of {total:,} experts have no known similarity to any other, so they are "
        f"never replaced ({name_some(named)})"
    ) + (f": {why}" if why else "")


def read_zeros_as_unknown(layer: LayerSimilarity, metric: str) -> LayerSimilarity:
    """Return a layer from a file of format version 1 with NaN where the metric's 0 meant "not known".

    These are the rows that are 0 off the diagonal; for a symmetric metric, the columns too.

    Args:
        layer: As it was stored.
        metric: The metric's name.
    """
    zero = layer.similarity.clone().fill_diagonal_(0) == 0
    lost = zero.all(dim=1)[:, None]
    if metric not in _ZERO_MEANT_UNKNOWN or layer.num_experts == 1 or not bool(lost.any()):
        return layer
    lost = lost | lost.T if METRICS[metric].symmetric else lost.expand_as(zero)
    similarity = layer.similarity.masked_fill(lost, torch.nan).fill_diagonal_(1)
    scale = None if layer.scale is None else layer.scale.masked_fill(lost, 1)
    return replace(layer, similarity=similarity, scale=scale)


def _layer(index: int, part: Mapping[str, Tensor]) -> LayerSimilarity:
    if "similarity" not in part:
        raise TableError(f"layer {index}: has no similarity, only a scale or a sensitivity; calibrate again")
    try:
        return LayerSimilarity(part["similarity"], part.get("scale"), part.get("sensitivity"))
    except InputError as error:
        raise TableError(f"layer {index}: {error}") from error
