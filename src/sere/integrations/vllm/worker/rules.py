"""From settings as they were given to SERE's rule, for one worker's layers, table and expert kernels."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sere.config import MOST_INT, RerouteConfig
from sere.config.change import without_active_experts
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start import tables
from sere.integrations.vllm.worker.expert_kernels import fit_to_kernel, needs_full_rows
from sere.integrations.vllm.worker.step_limits import Choice
from sere.policies.base import LayerShape
from sere.policies.sere import Sere
from sere.reroute.constants import LIMITS
from sere.table import SimilarityTable

SHOWN_ROWS = (1, 4, 8, 16, 32, 64, 128)
"""Rows of a step for which statistics and the log tell M."""


MIXED_LOAD = 8
"""Slots of rows that keep their experts, for each expert of a layer, from which on a step is left alone."""


class Rules:
    """Makes SERE's rule from settings, the engine's own or those of a tier.

    Args:
        table: The similarities, checked against the model's config.
        plugin_config: The plug-in's settings.

    Attributes:
        table: The table, maybe without its tiers' τ.
        allowed: What requests may ask for.
        tiers: The tiers among that.
        digest: What the table is, for comparing it between ranks.
        kernels: Class names of the layers' expert kernels, None where one cannot be told; all layers get what
            all of them support.
        merge_given: Whether the user chose ``merge``; if not, it is fitted to the kernels.

    Raises:
        ConfigError: The table lacks a tier that requests were to ask for.
    """

    def __init__(self, table: SimilarityTable, plugin_config: PluginConfig) -> None:
        self.table = table
        self.allowed = tables.allowed_of_requests(table, plugin_config)
        self.tiers = tuple(name for name in table.tiers if name in self.allowed.names)
        self.digest = tables.digest(table)
        self.kernels: set[str | None] = set()
        self.merge_given = plugin_config.merge_given

    def of(self, given: RerouteConfig) -> Sere:
        """Return the rule of the engine's settings.

        Args:
            given: The settings as they were given.

        Raises:
            ConfigError: They do not fit the table or an expert kernel.
        """
        config = self.table.settings(given)
        for kernel in sorted(self.kernels, key=str):
            config = fit_to_kernel(config, kernel, merge_given=self.merge_given)
        full_rows = any(needs_full_rows(config, kernel) for kernel in self.kernels)
        return Sere(self.table.layers, config, full_rows=full_rows)

    def leave_out_gains(self) -> None:
        """Leave out the tiers' τ from now on, because no expert kernel skips a slot."""
        self.table = self.table.without_gains()

    def of_all_slots(self) -> Rules:
        """Return these without the tiers' τ, for steps in which all slots are computed in any case."""
        rules = copy.copy(self)
        rules.leave_out_gains()
        return rules

    def of_tier(self, given: RerouteConfig, tier: str) -> Sere:
        """Return the rule of a tier of the table, otherwise with the engine's settings.

        Args:
            given: The engine's settings as they were given.
            tier: The tier's name.

        Raises:
            ConfigError: They do not fit together.
        """
        layers = without_active_experts(given.layers)
        return self.of(
            dataclasses.replace(given, tier=tier, active_experts="auto", layers=layers, preset=None)
        )

    def limits(self, given: RerouteConfig, shapes: Sequence[LayerShape]) -> dict[Choice, Tensor]:
        """Return S, M and the least gain of all layers for every choice of a step but ``OFF``.

        Args:
            given: The engine's settings as they were given.
            shapes: The layers.

        Returns:
            By choice: ``[layers, LIMITS]``, int32, on the host, as `layer_limits` returns them.

        Raises:
            ConfigError: The settings do not fit the table.
        """
        rules = self._choices(given)
        none = torch.empty(0, LIMITS, dtype=torch.int32, device="cpu")
        return {
            name: torch.stack([rule.limits(shape) for shape in shapes]) if shapes else none
            for name, rule in rules.items()
        }

    def exact_rows(self, given: RerouteConfig, shapes: Sequence[LayerShape]) -> dict[Choice, int]:
        """Return up to how many rows a step surely changes nothing, for every choice of a step but ``OFF``.

        Args:
            given: The engine's settings as they were given.
            shapes: The layers.
        """
        return {
            name: min(map(rule.exact_rows, shapes), default=0) for name, rule in self._choices(given).items()
        }

    def _choices(self, given: RerouteConfig) -> dict[Choice, Sere]:
        return {None: self.of(given)} | {tier: self.of_tier(given, tier) for tier in self.tiers}


def mixed_rows(shapes: Iterable[LayerShape]) -> int:
    """Return from how many rows that keep their experts on a step is left alone.

    So many rows need nearly every expert of each layer: ``MIXED_LOAD`` slots for each expert.

    Args:
        shapes: The layers.

    Source: benchmarks/mixed_steps.py counts what is left to save at other loads.
    """
    return max((-(-MIXED_LOAD * shape.num_experts // shape.top_k) for shape in shapes), default=MOST_INT)


def neighbor_settings(sere: Sere, index: int) -> tuple[float, tuple[int, ...]]:
    """Return the settings of a layer that more depends on than its limits: ρ, and which experts it keeps."""
    return sere.config.for_layer(index).threshold, sere.config.keep.get(index, ())


def layer_settings(sere: Sere, shape: LayerShape) -> dict[str, Any]:
    """Return the settings of one layer, JSON-ready, with M for steps of `SHOWN_ROWS` rows."""
    # S comes first, so that M is found at the number of rows.
    limits, own = sere.limits(shape).numpy(), sere.config.for_layer(shape.index)
    return {
        "select_top_k": int(limits[0]),
        "threshold": own.threshold,
        "min_gain": own.min_gain,
        "active_experts": [[rows, int(limits[rows])] for rows in SHOWN_ROWS],
    }
