"""Which settings a vLLM engine runs, which of them can share an engine, and how it switches between them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sere.config import RerouteConfig
from sere.engines.in_process import state_of
from sere.integrations.vllm import configure
from sere.policies.spec import PolicySpec

LIVE = ("select_top_k", "threshold", "active_experts", "min_gain", "layers", "tier")
"""Options of a ``sere`` setting that an engine can change while it runs; the others are part of its start."""

COUNT_ONLY: Mapping[str, Any] = {"enabled": True, "count_only": True}
"""Changes that count experts and re-route none."""

Start = Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
"""Starts an engine (or a server of one) with settings of re-routing beside the table, and ends it."""


def by_engine(settings: Sequence[PolicySpec]) -> list[tuple[dict[str, Any], list[PolicySpec]]]:
    """Group settings by the engine that they need.

    Args:
        settings: In the order in which they are to be measured.

    Returns:
        For each engine the settings of its start and what is measured in it. ``sere`` settings that differ
        only in S, ρ and M share one; other settings run in any engine and so in the first.
    """
    groups: dict[str, list[PolicySpec]] = {}
    first = next((_of_start(setting) for setting in settings if is_own(setting)), "{}")
    for setting in settings:
        groups.setdefault(_of_start(setting) if is_own(setting) else first, []).append(setting)
    return [(json.loads(options), group) for options, group in groups.items()]


def start_settings(table: str | os.PathLike[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of re-routing that an engine for measurements starts with.

    Args:
        table: Where the similarity table lies.
        settings: Those of its start, from `by_engine`.
    """
    return {"table": str(table), "select_top_k": 1, "log_seconds": 0} | dict(settings)


def is_own(setting: PolicySpec) -> bool:
    """Whether it is the rule that a served engine runs itself; an eager engine runs others in its place."""
    return setting.name == "sere"


def is_served(setting: PolicySpec) -> bool:
    """Whether a served engine can run it as well: its own rule, or none."""
    return is_own(setting) or not setting.policy_class.changes_routing


def counted_changes(setting: PolicySpec) -> dict[str, Any]:
    """Return what to change in a running engine for ``sere`` or ``off``, so that its experts are counted."""
    if not is_own(setting):
        return dict(COUNT_ONLY)
    values = RerouteConfig.from_mapping(setting.options).to_mapping()
    return {"enabled": True, "count_only": False} | {name: values[name] for name in LIVE}


def live_changes(setting: PolicySpec) -> dict[str, Any]:
    """Return what to change in a running engine for ``sere`` or ``off`` as served: off counts nothing."""
    return {"enabled": False} if setting.name == "off" else counted_changes(setting)


@contextmanager
def routed(llm: Any, setting: PolicySpec, *, seed: int = 0) -> Iterator[None]:
    """Let an engine run a setting: ``sere`` and ``off`` as the engine itself does, others in its place.

    Which rows are decoded, and that prompts are exact, is up to the engine in either case.

    Args:
        llm: An engine of this process, started with what ``by_engine`` says; eager for other rules.
        setting: What to run.
        seed: The seed of a rule that draws, unless the setting names one.

    Raises:
        UnsupportedEngine: The engine is compiled, its expert kernel is not known to handle duplicate ids
            within one token's top-k, or its routers have no scores for a rule that needs them.
    """
    if is_served(setting):
        configure(llm, **counted_changes(setting))
        yield
        return
    configure(llm, enabled=True, count_only=False)
    state = state_of(llm)
    with state.routed_by(setting.build(state.table, seed=seed)):
        yield


def _of_start(setting: PolicySpec) -> str:
    """Return what differs from the defaults of what is part of an engine's start, as JSON."""
    values, defaults = RerouteConfig.from_mapping(setting.options).to_mapping(), RerouteConfig().to_mapping()
    # A preset stands for values of the others, and would need those that change while the engine runs.
    of_start = values.keys() - {*LIVE, "preset"}
    return json.dumps({name: values[name] for name in sorted(of_start) if values[name] != defaults[name]})
