"""SERE: secondary experts are replaced by the most similar expert that the batch needs anyway.

Source: SERE (ICLR 2026, arXiv 2602.07616); METHOD.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableError
from sere.policies.base import Policy
from sere.reroute import Plan, Routing, make_plan
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
        self._plans: dict[tuple[int, torch.device], Plan] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {"policy": self.name} | self.config.to_mapping()

    def plan(self, layer: int, device: torch.device) -> Plan:
        """Return the prepared layer on a device, preparing it at the first call.

        Raises:
            TableError: The table has no such layer.
        """
        found = self._plans.get((layer, device))
        if found is None:
            if layer not in self.layers:
                raise TableError(f"no similarities for layer {layer}; the table has {sorted(self.layers)}")
            similarity = self.layers[layer]
            found = make_plan(
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
        row_budget: Tensor | None = None,
        num_tokens: Tensor | int | None = None,
        scores: Tensor | None = None,  # noqa: ARG002 - other policies need them
        counters: Tensor | None = None,
    ) -> Routing:
        """Route one step of one layer; see ``Policy.route``."""
        return self.plan(layer, topk_ids.device).route(
            topk_ids, topk_weights, row_budget=row_budget, num_tokens=num_tokens, counters=counters
        )


def why_idle(
    config: RerouteConfig, K: int, E: int, layers: Mapping[int, LayerSimilarity] | None = None
) -> str | None:
    """Return why these settings re-route nothing in layers of E experts and K slots a row, or None.

    With S >= K, a floor of E, or all experts kept, every expert that occurs is primary; with a threshold
    above every similarity none has a substitute. No other setting undoes that.

    Args:
        config: The settings.
        K: Routed slots per token, the most of any layer.
        E: Experts of a layer, the most of any layer.
        layers: Similarities by layer, where they are known.

    Source: METHOD.md section 4, steps 2 to 4.
    """
    S = config.select_top_k
    if config.min_active >= E:
        return (
            f"min_active={config.min_active}: nothing will be re-routed, for a layer has E={E} experts and "
            f"all that occur are primary; use a floor well below {E}"
        )
    if S >= K:
        return (
            f"select_top_k={S}: nothing will be re-routed but rows with a smaller budget of their own, for a "
            f"row has K={K} slots and all are primary; use S < K"
        )
    if layers and all(len(config.keep.get(index, ())) >= layer.E for index, layer in layers.items()):
        return "keep: nothing will be re-routed, for every expert of every layer is kept; keep fewer"
    if layers and config.threshold > 0:
        most = max(_most_similar(layer) for layer in layers.values())
        if most < float(torch.tensor(config.threshold, dtype=torch.float32)):
            return (
                f"threshold={config.threshold:g}: nothing will be re-routed, for the largest similarity of "
                f"the table is {most:.3g}; use a smaller threshold"
            )
    return None


def _most_similar(layer: LayerSimilarity) -> float:
    """The largest similarity of two experts of a layer."""
    others = ~torch.eye(layer.E, dtype=torch.bool, device=layer.similarity.device)
    return float(torch.where(others, layer.similarity, -torch.inf).max())


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
        E = layers[layer].E
        for expert in experts:
            if not 0 <= expert < E:
                raise ConfigError(f"keep: layer {layer} has the experts 0 to {E - 1}, got {expert}")
