"""Put one setting on a model of Transformers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from sere.config import RerouteConfig
from sere.engines.side_by_side import SideBySide
from sere.engines.wrapped import WrappedPolicy
from sere.integrations.transformers.flat_experts import fit_gains
from sere.integrations.transformers.inputs import has_full_attention_cache
from sere.policies.base import LayerRouter, LayerShape, Policy
from sere.policies.spec import PolicySpec
from sere.structure import find_experts, identify
from sere.wrappers import inner_model

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle
    from sere.table import SimilarityTable


def apply_setting(
    model: Any,
    setting: PolicySpec,
    table: SimilarityTable | None,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    pad_token_id: int | None = None,
    batch_size: int | None = None,
    counts_all: bool = True,
) -> Handle:
    """Apply a setting to a model and return the handle, which counts and which removes it.

    ``off`` is applied too, as a policy that changes nothing and counts; to leave a model as it is, do not
    call this.

    Args:
        model: A model of Transformers.
        setting: What to apply.
        table: Similarities, for rules that need them.
        seed: The seed of a rule that draws, unless the setting names one.
        policy: The setting's policy, if it was built already.
        pad_token_id: What ``generate`` feeds to rows that have ended; None for decode steps of our own.
        batch_size: Rows of a step, if a forward pass holds several steps; None if it is one step.
        counts_all: Whether steps that surely change nothing are counted too, which makes them slower.

    Raises:
        ConfigError: The setting needs a table and there is none.
        TableMismatch: The table belongs to another model.
    """
    from sere.integrations.transformers import apply

    # Every row of our decode steps is real, even one that is fed the pad token as a word of its text.
    if pad_token_id is None and has_full_attention_cache(model):
        pad_token_id = -1
    if policy is None:
        if setting.needs_table and table is not None:
            table.check(identify(inner_model(model)))
            # As if the model were re-routed by its users.
            table = fit_gains(table, find_experts(inner_model(model)), _flatten_of(setting))
        policy = setting.build(table, seed=seed)
    if batch_size is not None:
        policy = SideBySide(policy, batch_size)
    handle = apply(model, policy=policy, pad_token_id=pad_token_id)
    handle.counts_all = counts_all
    return handle


def _flatten_of(setting: PolicySpec) -> str:
    return str(setting.options.get("flatten", RerouteConfig().flatten))


def check_settings(settings: Iterable[PolicySpec], table: SimilarityTable | None) -> None:
    """Refuse, before long work, a setting that could not be applied.

    Raises:
        ConfigError: A value is out of range, or what the setting needs of a table is missing.
    """
    for setting in settings:
        setting.build(table)


class Resumed(WrappedPolicy):
    """A rule that continues where it was each time it is applied: its routers outlive the handles.

    Args:
        policy: The rule.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._routers: dict[tuple[LayerShape, torch.device], LayerRouter] = {}

    def bind(self, layer: LayerShape, device: torch.device) -> LayerRouter:
        """Return the layer's router, with counters of 0."""
        found = self._routers.get((layer, device))
        if found is None:
            found = self._routers[layer, device] = self.policy.bind(layer, device)
        found.counters.zero_()
        return found
