"""Changed settings as one worker will write them: complete and checked, on the host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sere.config import RerouteConfig
from sere.integrations.vllm.worker.rules import Rules, neighbor_settings
from sere.integrations.vllm.worker.step_limits import Choice
from sere.policies.sere import Sere, SereRouter
from sere.provenance import installed_version
from sere.reroute import PreparedLayer

Fingerprint = Mapping[str, Any]
"""What ranks compare: ``"common"``, equal in all of them, and by layer what those that hold it have."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings that a worker can take between two steps, with copies only.

    Attributes:
        given: The settings as they were given.
        sere: The rule that they make.
        enabled: Whether re-routing is on.
        count_only: Whether experts are counted and none is re-routed.
        limits: By choice: ``[layers, LIMITS]``, int32, on the host.
        limits_of_all_slots: The same for steps in which all slots are computed in any case.
        exact_rows: By choice, up to how many rows a step surely changes nothing.
        layers: By index the layers of which more than limits changes, prepared on the host.
        fingerprint: Of the state that they lead to.
    """

    given: RerouteConfig
    sere: Sere
    enabled: bool
    count_only: bool
    limits: Mapping[Choice, Tensor]
    limits_of_all_slots: Mapping[Choice, Tensor]
    exact_rows: Mapping[Choice, int]
    layers: Mapping[int, PreparedLayer]
    fingerprint: Fingerprint


def propose(
    rules: Rules,
    given: RerouteConfig,
    switches: tuple[bool, bool],
    *,
    now: Sere,
    routers: Mapping[int, SereRouter],
) -> Proposal:
    """Prepare changed settings on the host.

    Args:
        rules: What makes rules from settings in this worker.
        given: The settings as they are to be.
        switches: Whether re-routing is to be on, and whether it is to count only.
        now: The rule that holds at present.
        routers: Its routers by layer.

    Raises:
        ConfigError: The settings do not fit the table, or cannot change in place.
    """
    sere = rules.of(given)
    shapes = [router.layer for router in routers.values()]
    limits = rules.limits(given, shapes)
    layers = {
        index: sere.prepare(router.layer, router.prepared.device, on_host=True)
        for index, router in routers.items()
        if neighbor_settings(sere, index) != neighbor_settings(now, index)
    }
    for index, prepared in layers.items():
        routers[index].prepared.check_update(prepared)
    # The same file may have another path on another machine.
    table = {"table": rules.digest}
    common = [installed_version("sere"), given.to_mapping() | table, switches]
    rule = sere.config.to_mapping() | table
    chosen = [values for _, values in sorted(limits.items(), key=lambda item: str(item[0]))]
    # Keys are text, which every way between processes keeps as it is.
    by_layer = {
        str(index): _digest(
            [rule, router.layer.num_experts, router.layer.top_k, *(values[row].tolist() for values in chosen)]
        )
        for row, (index, router) in enumerate(routers.items())
    }
    fingerprint: Fingerprint = {"common": _digest(common), "layers": by_layer}
    of_all_slots = rules.of_all_slots().limits(given, shapes)
    exact_rows = rules.exact_rows(given, shapes)
    return Proposal(given, sere, *switches, limits, of_all_slots, exact_rows, layers, fingerprint)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
