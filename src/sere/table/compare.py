"""How much two tables differ, and whether comparing them is meaningful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sere.errors import TableMismatch, name_some
from sere.identity import ModelIdentity, span, summary
from sere.similarity import LayerSimilarity
from sere.table.artifact import SimilarityTable
from sere.table.layers import best_neighbors


@dataclass(frozen=True)
class LayerDifference:
    """What changed in one layer.

    Attributes:
        layer: Decoder-layer index.
        max_difference: Largest absolute difference of a similarity that both know.
        mean_difference: Mean absolute difference of these, off the diagonal.
        choices_changed: Share of experts whose most similar other expert is another one.
        known_in_one: Similarities that one of the two knows and the other does not.
    """

    layer: int
    max_difference: float
    mean_difference: float
    choices_changed: float
    known_in_one: int


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        equal: Whether all similarities and scales are equal to the bit and both have the same layers.
        layers: Differences by layer, of the layers that both have with the same E.
        warnings: Why the two are not comparable: other model, metric, parameters, data, layers.
    """

    equal: bool
    layers: tuple[LayerDifference, ...]
    warnings: tuple[str, ...]


def compare(a: SimilarityTable, b: SimilarityTable) -> Comparison:
    """Compare two tables layer by layer.

    Args:
        a: A table.
        b: Another; the result warns where comparing means little.

    Raises:
        TableMismatch: There is nothing to compare: no layer is in both, or E differs.
    """
    both = [
        index
        for index in a.layers
        if index in b.layers and a.layers[index].num_experts == b.layers[index].num_experts
    ]
    if not both:
        raise TableMismatch(
            "expected two tables with a layer in common that has as many experts in both, got "
            f"{_shape(a)} and {_shape(b)}"
        )
    equal = set(a.layers) == set(b.layers) == set(both) and all(
        _equal(a.layers[index], b.layers[index]) for index in both
    )
    differences = tuple(_difference(index, a.layers, b.layers) for index in both)
    return Comparison(equal=equal, layers=differences, warnings=tuple(_warnings(a, b)))


def _shape(table: SimilarityTable) -> str:
    experts = span(table.identity.experts.values())
    return f"{table.identity.name!r} (E={experts}, layers [{name_some(table.layers)}])"


def _equal(a: LayerSimilarity, b: LayerSimilarity) -> bool:
    known = (layer.similarity.nan_to_num(nan=-1) for layer in (a, b))
    others = ((a.scale, b.scale), (a.sensitivity, b.sensitivity))
    return torch.equal(*known) and all(_same(one, other) for one, other in others)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _difference(
    index: int, a: Mapping[int, LayerSimilarity], b: Mapping[int, LayerSimilarity]
) -> LayerDifference:
    first, second = a[index].similarity, b[index].similarity
    # NaN where either is.
    absolute = (first - second).abs()
    unknown = int(absolute.isnan().sum())
    absolute = absolute.nan_to_num(nan=0)
    pairs = max(1, absolute.numel() - len(absolute) - unknown)
    changed = _choices(a[index]) != _choices(b[index])
    return LayerDifference(
        layer=index,
        max_difference=float(absolute.max()),
        mean_difference=float(absolute.double().sum()) / pairs,
        choices_changed=float(changed.float().mean()),
        known_in_one=int((first.isnan() != second.isnan()).sum()),
    )


def _choices(layer: LayerSimilarity) -> torch.Tensor:
    """Return each expert's most similar other expert (ties: the lower id), ``[E]``; -1: none is known."""
    others = layer.similarity.nan_to_num(nan=-1).fill_diagonal_(-1)
    # numpy's argmax takes the first of equals; torch's promises nothing.
    best = torch.from_numpy(others.numpy().argmax(axis=1))
    return best.masked_fill(best_neighbors(layer.similarity).isnan(), -1)


def _other_model(a: ModelIdentity, b: ModelIdentity) -> bool:
    if a.recorded_digest or b.recorded_digest:
        return a.digest != b.digest or a.experts != b.experts
    return bool(a.differences(b))


def _warnings(a: SimilarityTable, b: SimilarityTable) -> list[str]:
    found = []
    if _other_model(a.identity, b.identity):
        found.append(f"different models: {summary(a.identity)} and {summary(b.identity)}")
    elif a.identity.slots != b.identity.slots:
        slots = [span(table.identity.slots.values()) for table in (a, b)]
        found.append(f"different numbers of routed slots per token: K={slots[0]} and K={slots[1]}")
    if set(a.layers) != set(b.layers):
        found.append(f"different layers: [{name_some(sorted(a.layers))}] and [{name_some(sorted(b.layers))}]")
    if a.metric != b.metric:
        found.append(f"different metrics: {a.metric} and {b.metric}")
    elif dict(a.metric_parameters) != dict(b.metric_parameters):
        found.append(
            f"different {a.metric} parameters: {dict(a.metric_parameters)} and {dict(b.metric_parameters)}"
        )
    if a.data_digest != b.data_digest:
        texts = [
            f"{table.calibration_tokens} tokens, digest {table.data_digest[:12] or 'none'}"
            for table in (a, b)
        ]
        found.append(f"different calibration data: {texts[0]} and {texts[1]}")
    return found
