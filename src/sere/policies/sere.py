"""SERE: secondary experts are replaced by the most similar expert that the batch needs anyway.

Source: SERE (ICLR 2026, arXiv 2602.07616); docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableError
from sere.identity import span
from sere.policies.base import Policy
from sere.reroute import PreparedLayer, Routing, TokenBatch, prepare_layer
from sere.reroute.checks import as_row_budgets
from sere.similarity.layer import LayerSimilarity


class Sere(Policy):
    """Similarity-based re-routing with one configuration for all layers.

    Args:
        layers: Similarities by index of the decoder layer: ``table.layers``.
        config: The settings.

    Raises:
        ConfigError: ``config.keep`` names a layer without similarities or an expert that its layer does not
            have, or ``use_scale`` asks for factors that the layers do not have.
    """

    name: ClassVar[str] = "sere"

    def __init__(self, layers: Mapping[int, LayerSimilarity], config: RerouteConfig) -> None:
        check_fit(config, layers)
        self.layers = dict(layers)
        self.config = config
        self._plans: dict[tuple[int, torch.device], PreparedLayer] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name} | self.config.to_mapping()

    def plan(self, layer: int, device: torch.device) -> PreparedLayer:
        """Return the prepared layer on a device, preparing it at the first call.

        Raises:
            TableError: The table has no such layer.
        """
        found = self._plans.get((layer, device))
        if found is None:
            if layer not in self.layers:
                raise TableError(f"no similarities for layer {layer}; the table has {sorted(self.layers)}")
            similarity = self.layers[layer]
            found = prepare_layer(
                similarity,
                self.config,
                keep=self.config.keep.get(layer, ()),
                scale=similarity.scale if self.config.use_scale else None,
                device=device,
            )
            self._plans[layer, device] = found
        return found

    def route(
        self,
        layer: int,
        topk_ids: Tensor,
        topk_weights: Tensor,
        *,
        row_budgets: Tensor | Sequence[int] | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,  # noqa: ARG002 - other policies need them
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``."""
        budgets = as_row_budgets(row_budgets, topk_ids.device)
        batch = TokenBatch(topk_ids, topk_weights, budgets, num_tokens)
        return self.plan(layer, topk_ids.device).route(batch, counters)


class Shape(Protocol):
    """A layer, as far as `why_idle` looks at it: its decoder-layer index, E and K."""

    @property
    def index(self) -> int:
        """Decoder-layer index."""

    @property
    def num_experts(self) -> int:
        """Number of experts."""

    @property
    def top_k(self) -> int:
        """Routed slots per token, as the model at hand routes."""


def why_idle(config: RerouteConfig, layers: Iterable[Shape]) -> str | None:
    """Return why these settings re-route nothing in some or all layers, or None.

    With S >= K, or a floor of E, every expert of a layer that occurs is primary, and no other setting undoes
    that.

    Source: docs/method.md section 4, steps 2 to 4.
    """
    S, floor, shapes = config.select_top_k, config.min_active, list(layers)
    floored = [layer for layer in shapes if floor >= layer.num_experts]
    kept = [layer for layer in shapes if floor < layer.num_experts and layer.top_k <= S]
    reasons = []
    if floored:
        E = span(layer.num_experts for layer in floored)
        reasons.append(
            f"min_active={floor}: nothing will be re-routed{_in(floored, shapes)}, because with {E} experts "
            f"per layer all that occur are primary; use a floor well below {min(x.num_experts for x in floored)}"
        )
    if kept:
        K = span(layer.top_k for layer in kept)
        reasons.append(
            f"select_top_k={S}: nothing will be re-routed{_in(kept, shapes)} but rows with a smaller "
            f"budget of their own, because all K={K} slots of a token are kept; use a select_top_k below "
            f"{min(x.top_k for x in kept)}"
        )
    return "; ".join(reasons) or None


def _in(some: list[Shape], layers: list[Shape]) -> str:
    """Name the layers that a sentence is about, unless it is about all."""
    if len(some) == len(layers):
        return ""
    return f" in layer{'s' * (len(some) > 1)} {', '.join(str(layer.index) for layer in some)}"


def why_no_substitute(config: RerouteConfig, layers: Mapping[int, LayerSimilarity]) -> str | None:
    """Return why no expert of any layer has a substitute under these settings, or None.

    Above every similarity between two experts, ρ makes each secondary expert critical; experts that are kept
    are all primary.

    Source: docs/method.md section 4, steps 2 and 4.
    """
    if all(len(config.keep.get(index, ())) >= layer.num_experts for index, layer in layers.items()):
        return "keep: nothing will be re-routed, because every expert of every layer is kept; keep fewer"
    most = max(_most_similar(layer) for layer in layers.values())
    # In float32, as re-routing compares them.
    if float(torch.tensor(config.threshold, dtype=torch.float64, device="cpu").float()) <= most:
        return None
    return (
        f"threshold={config.threshold:g}: nothing will be re-routed, because no two experts of the "
        f"table are more similar than {most:.3f}; use a smaller threshold"
    )


def _most_similar(layer: LayerSimilarity) -> float:
    """Return the largest similarity between two different experts of a layer."""
    own = torch.eye(layer.num_experts, dtype=torch.bool, device=layer.similarity.device)
    # One that is not known (NaN) is a substitute at no threshold.
    return float(layer.similarity.masked_fill(own | layer.similarity.isnan(), 0.0).max())


def check_fit(config: RerouteConfig, layers: Mapping[int, LayerSimilarity]) -> None:
    """Refuse settings that ask for what the layers do not have.

    Args:
        config: The settings.
        layers: Similarities by layer.

    Raises:
        ConfigError: ``keep`` names a layer or an expert that is not there, or ``use_scale`` asks for factors.
    """
    check_keep(config.keep, layers)
    if config.use_scale and any(layer.scale is None for layer in layers.values()):
        raise ConfigError("use_scale: the table has no scale; calibrate with metric='projection'")


def check_keep(keep: Mapping[int, Sequence[int]], layers: Mapping[int, LayerSimilarity]) -> None:
    """Refuse experts to keep that are not there.

    Args:
        keep: Expert ids by layer, as in the settings.
        layers: Similarities by layer.

    Raises:
        ConfigError: A layer has no similarities, or not as many experts; the text names it.
    """
    for layer, experts in sorted(keep.items()):
        if layer not in layers:
            raise ConfigError(f"keep: layer {layer} has no similarities; the table has {sorted(layers)}")
        E = layers[layer].num_experts
        for expert in experts:
            if not 0 <= expert < E:
                raise ConfigError(f"keep: layer {layer} has the experts 0 to {E - 1}, got {expert}")
