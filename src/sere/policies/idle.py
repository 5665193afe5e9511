"""Why settings of SERE re-route nothing, told from the settings, the table and the layers' shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from sere.config import LayerSettings, RerouteConfig
from sere.config.active_experts import text_of_active_experts
from sere.errors import MOST_NAMED
from sere.identity import span
from sere.policies.base import LayerShape
from sere.reroute.limits import active_by_rows
from sere.similarity.layer import LayerSimilarity


def why_idle(config: RerouteConfig, shapes: Iterable[LayerShape]) -> list[str]:
    """Return one sentence per reason why the settings re-route nothing in some or all layers.

    With S >= K, or M >= E, every expert of a layer that occurs is primary, and no other setting undoes
    that.

    Args:
        config: The settings.
        shapes: The layers of a model.

    Source: docs/method.md section 4, steps 2 to 4.
    """
    layers = list(shapes)
    own = {layer.index: config.for_layer(layer.index) for layer in layers}
    filled = [layer for layer in layers if _least_active(own[layer.index], layer) >= layer.num_experts]
    kept = [layer for layer in layers if layer not in filled and layer.top_k <= own[layer.index].select_top_k]
    reasons = []
    for value in dict.fromkeys(own[layer.index].active_experts for layer in filled):
        some = [layer for layer in filled if own[layer.index].active_experts == value]
        E = span(layer.num_experts for layer in some)
        reasons.append(
            f"active_experts={text_of_active_experts(value)} disables re-routing{_where(some, layers)}: with "
            f"{E} experts per layer every routed expert is primary. Use a smaller value"
        )
    if kept:
        K = span(layer.top_k for layer in kept)
        S = span(own[layer.index].select_top_k for layer in kept)
        reasons.append(
            f"select_top_k={S} is not smaller than {_whose(kept, layers, K)}; "
            f"{_smaller(min(layer.top_k for layer in kept))}"
        )
    return reasons


def all_fit(limits: Mapping[LayerShape, Sequence[int]], rows: int) -> bool:
    """Whether in every layer M is at least as many experts as the rows of a step choose, up to some rows.

    Args:
        limits: S, then M for 1, 2, ... rows, by layer, as kernels read them.
        rows: Rows of the largest step.

    Source: docs/method.md section 4, step 3: then all experts that occur are primary.
    """
    return all(
        own[min(count, len(own) - 1)] >= min(layer.num_experts, count * layer.top_k)
        for layer, own in limits.items()
        for count in range(1, rows + 1)
    )


def why_no_substitute(config: RerouteConfig, layers: Mapping[int, LayerSimilarity]) -> list[str]:
    """Return the reason, if there is one, why no expert of any layer has a substitute under these settings.

    Above every similarity between two experts of a layer, its ρ makes each secondary expert critical; experts
    that are kept are all primary.

    Args:
        config: The settings.
        layers: Similarities by layer.

    Source: docs/method.md section 4, steps 2 and 4.
    """
    if all(len(config.keep.get(index, ())) >= layer.num_experts for index, layer in layers.items()):
        return ["keep names every expert of every layer, so nothing will be re-routed; keep fewer experts"]
    thresholds = {index: config.for_layer(index).threshold for index in layers}
    similar = {index: _most_similar(layer) for index, layer in layers.items()}
    # In float32, as re-routing compares them.
    if any(
        float(torch.tensor(thresholds[index], dtype=torch.float64, device="cpu").float()) <= similar[index]
        for index in layers
    ):
        return []
    least, most = min(thresholds.values()), max(thresholds.values())
    value, where = (
        (f"{least:g}", "in the table")
        if least == most
        else (f"{least:g} to {most:g}", "of its layer in the table")
    )
    return [
        f"threshold={value} is above every similarity {where} (at most {max(similar.values()):.3f}), so "
        "nothing will be re-routed; use a smaller threshold"
    ]


def why_all_fit(name: str, value: int, shapes: Iterable[LayerShape]) -> list[str]:
    """Return the reason, if there is one, why as many experts as are allowed re-route nothing: they are all.

    Args:
        name: The setting that says how many experts a layer may use.
        value: Its value.
        shapes: The layers of a model.
    """
    layers = list(shapes)
    whole = [layer for layer in layers if layer.num_experts <= value]
    return _disabled(f"{name}={value}", whole, layers, "that is not smaller than the {}", "smaller")


def why_too_small(name: str, share: float, shapes: Iterable[LayerShape]) -> list[str]:
    """Return the reason, if there is one, why a share of the experts re-routes nothing: it is less than one.

    Args:
        name: The setting that says which share of the experts is dropped.
        share: Its value.
        shapes: The layers of a model.
    """
    layers = list(shapes)
    whole = [layer for layer in layers if int(layer.num_experts * share) < 1]
    return _disabled(f"{name}={share:g}", whole, layers, "that is less than one of {}", "larger")


def _disabled(
    setting: str, some: list[LayerShape], layers: list[LayerShape], why: str, better: str
) -> list[str]:
    """Return the sentence on a setting that re-routes nothing in some layers; ``why`` has a place for E."""
    if not some:
        return []
    E = span(layer.num_experts for layer in some)
    return [
        f"{setting} disables re-routing{_where(some, layers)}: {why.format(E)} experts per layer. "
        f"Use a {better} value"
    ]


def _least_active(settings: LayerSettings, layer: LayerShape) -> int:
    """Return the smallest M of any step."""
    return min(active_by_rows(settings.active_experts, layer.num_experts, layer.top_k))


def _smaller(K: int) -> str:
    """Return what to use below a layer's K."""
    if K == 1:
        return "a model with one expert per token cannot be re-routed"
    return "use select_top_k=1" if K == 2 else f"use a value from 1 to {K - 1}"


def _whose(some: list[LayerShape], layers: list[LayerShape], K: str) -> str:
    """Say whose K it is, and what follows."""
    if len(some) == len(layers):
        return f"the model's top_k={K}, so nothing will be re-routed"
    return f"top_k={K} of {_names(some)}, so nothing will be re-routed there"


def _where(some: list[LayerShape], layers: list[LayerShape]) -> str:
    """Name the layers that a sentence is about, unless it is about all."""
    return "" if len(some) == len(layers) else f" in {_names(some)}"


def _names(some: list[LayerShape]) -> str:
    named = [str(layer.index) for layer in some[:MOST_NAMED]] + ["..."] * (len(some) > MOST_NAMED)
    return f"layer{'s' * (len(some) > 1)} {', '.join(named)}"


def _most_similar(layer: LayerSimilarity) -> float:
    """Return the largest similarity between two different experts of a layer."""
    own = torch.eye(layer.num_experts, dtype=torch.bool, device=layer.similarity.device)
    # An unknown similarity (NaN) is a substitute at no threshold.
    return float(layer.similarity.masked_fill(own | layer.similarity.isnan(), 0.0).max())
