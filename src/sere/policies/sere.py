"""SERE: secondary experts are replaced by the most similar expert that the batch needs anyway.

Source: SERE (ICLR 2026, arXiv 2602.07616); docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sere.config import PAPER, RerouteConfig
from sere.errors import MOST_NAMED, ConfigError, TableError
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.policies.idle import why_idle, why_no_substitute
from sere.reroute import PreparedLayer, Routing, TokenBatch, prepare_layer
from sere.reroute.limits import exact_rows, layer_limits
from sere.similarity.layer import LayerSimilarity
from sere.table import SimilarityTable


@dataclass(frozen=True, eq=False)
class Sere(Policy):
    """Send every secondary slot to the most similar expert that the batch needs anyway.

    Attributes:
        layers: Similarities by index of the decoder layer: ``table.layers``.
        config: The settings.
        full_rows: Whether M is at least K in every layer, so that ``merge="distinct"`` never lacks an expert
            to fill a row with.

    Raises:
        ConfigError: ``config.keep`` or ``config.layers`` names a layer without similarities, or an expert
            that its layer does not have, or ``use_scale`` asks for factors that the layers do not have.
    """

    name: ClassVar[str] = "sere"
    source: ClassVar[str] = "arXiv 2602.07616"
    needs_table: ClassVar[bool] = True
    example: ClassVar[str] = "active_experts=24"
    presets: ClassVar[tuple[str, ...]] = (PAPER,)
    # The table is an argument of its own, and what settings are compared on are decode steps.
    given_elsewhere: ClassVar[frozenset[str]] = frozenset({"table", "phases"})

    layers: Mapping[int, LayerSimilarity]
    # The base class has a default, which this field has not.
    config: RerouteConfig = field()
    full_rows: bool = False

    def __post_init__(self) -> None:
        check_fit(self.config, self.layers)

    @classmethod
    def settings_type(cls) -> type:
        """Return the class of the settings."""
        return RerouteConfig

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse settings that are wrong whatever the model and the table; see `Policy`."""
        RerouteConfig.from_mapping(options)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], table: SimilarityTable | None) -> Self:
        """Build the rule from settings by name and a table, whose tiers they may name."""
        config = RerouteConfig.from_mapping(options)
        return cls({}, config) if table is None else cls(table.layers, table.settings(config))

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {"policy": self.name} | self.config.to_mapping()

    def bind(self, layer: LayerShape, device: torch.device) -> SereRouter:
        """Return the router of one layer on one device; see `Policy` and `prepare`."""
        return SereRouter(layer, self.prepare(layer, device))

    def limits(self, layer: LayerShape) -> Tensor:
        """Return S, M and the least gain of one layer as `layer_limits` does, on the host."""
        return layer_limits(
            self.config.for_layer(layer.index),
            layer.num_experts,
            layer.top_k,
            least_active=self._least_active(layer),
        )

    def _least_active(self, layer: LayerShape) -> int:
        return layer.top_k if self.full_rows else 0

    def prepare(self, layer: LayerShape, device: torch.device, *, on_host: bool = False) -> PreparedLayer:
        """Prepare one layer on one device.

        Args:
            layer: The layer.
            device: Where its steps will run.
            on_host: Leave the tensors on the CPU, for `PreparedLayer.update`.

        Raises:
            TableError: The table has no such layer.
            ConfigError: The settings' sentinel is the id of one of the layer's experts.
            BackendUnavailable: The settings name a backend that cannot run on the device, or not with the
                layer's dtypes.
        """
        similarity = self.layers.get(layer.index)
        if similarity is None:
            raise TableError(f"no similarities for layer {layer.index}; {_layers_of(self.layers)}")
        return prepare_layer(
            similarity,
            self.config,
            index=layer.index,
            top_k=layer.top_k,
            least_active=self._least_active(layer),
            keep=self.config.keep.get(layer.index, ()),
            scale=None if self.config.use_scale is False else similarity.scale,
            device=device,
            dtypes=layer.dtypes,
            on_host=on_host,
        )

    def exact_rows(self, layer: LayerShape) -> int:
        """Return up to how many rows nothing is re-routed; see `Policy`."""
        if self.config.merge != "none":
            # A router may put an expert into two slots of a row, which are then merged.
            return 0
        return exact_rows(self.limits(layer), layer.num_experts, layer.top_k)

    def why_idle(self, layers: Iterable[LayerShape]) -> list[str]:
        """Return why the settings re-route nothing; see `Policy`."""
        return why_idle(self.config, layers) + why_no_substitute(self.config, self.layers)


class SereRouter(LayerRouter):
    """One layer of SERE: its prepared similarities and settings.

    Attributes:
        prepared: The prepared layer.
    """

    def __init__(self, layer: LayerShape, prepared: PreparedLayer) -> None:
        super().__init__(layer, prepared.device)
        self.prepared = prepared

    def __call__(self, batch: TokenBatch) -> Routing:
        """Route one step; see `LayerRouter`."""
        return self.prepared.route(batch, self.counters)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step reads or writes, by name."""
        return super().tensors() | self.prepared.tensors()


def check_fit(config: RerouteConfig, layers: Mapping[int, LayerSimilarity]) -> None:
    """Refuse settings that ask for what the layers do not have.

    Args:
        config: The settings.
        layers: Similarities by layer.

    Raises:
        ConfigError: ``keep`` or ``layers`` names a layer or an expert that does not exist, or ``use_scale``
            or ``min_gain`` needs factors that some layer does not have.
    """
    check_keep(config.keep, layers)
    for index in config.layers:
        if index not in layers:
            raise ConfigError(f"layers: layer {index} has no similarities; {_layers_of(layers)}")
    bare = sorted(index for index, layer in layers.items() if layer.scale is None)
    gains = [index for index in bare if config.for_layer(index).min_gain > 0]
    for name, without in (("use_scale", bare if config.use_scale else []), ("min_gain", gains)):
        if without:
            whose = "the table has no factors" if len(without) == len(layers) else _bare(without)
            raise ConfigError(
                f"{name}: {whose}; calibrate with metric='projection', or leave {name} out to use the "
                "factors that there are"
            )


def check_keep(keep: Mapping[int, Sequence[int]], layers: Mapping[int, LayerSimilarity]) -> None:
    """Refuse experts to keep that do not exist.

    Args:
        keep: Expert ids by layer, as in the settings.
        layers: Similarities by layer.

    Raises:
        ConfigError: A layer has no similarities, or not as many experts; the text names it.
    """
    for layer, experts in sorted(keep.items()):
        if layer not in layers:
            raise ConfigError(f"keep: layer {layer} has no similarities; {_layers_of(layers)}")
        E = layers[layer].num_experts
        for expert in experts:
            if not 0 <= expert < E:
                raise ConfigError(f"keep: layer {layer} has the experts 0 to {E - 1}, got {expert}")


def _bare(layers: Sequence[int]) -> str:
    """Say which layers have no factors, at most `MOST_NAMED` of them by number."""
    named = ", ".join(map(str, layers[:MOST_NAMED])) + ", ..." * (len(layers) > MOST_NAMED)
    return f"the table has no factors for the layer{'s' * (len(layers) > 1)} {named}"


def _layers_of(layers: Mapping[int, LayerSimilarity]) -> str:
    """Say which layers a table has, at most `MOST_NAMED` of them by number."""
    first = sorted(layers)[:MOST_NAMED]
    rest = f", ... ({len(layers)} layers)" if len(layers) > len(first) else ""
    return f"the table has the layers {', '.join(map(str, first))}{rest}"
