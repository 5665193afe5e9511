"""Which settings an engine of vLLM runs, which of them share one, and how it changes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from sere.engines.in_process import state_of
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm import configure
from sere.integrations.vllm.tiers import COUNT_ONLY_S
from sere.integrations.vllm.worker.expert_kernels import SUPPORTS_DUPLICATES
from sere.policies.base import LayerRouter
from sere.policies.spec import PolicySpec
from sere.reroute import Routing, TokenBatch

LIVE = frozenset({"select_top_k", "threshold"})
"""Options of a setting that an engine can change while it runs; the others are part of its start."""

COUNT_ONLY: Mapping[str, Any] = {"enabled": True, "select_top_k": COUNT_ONLY_S, "threshold": 0.0}
"""Changes that count experts and re-route none: S is beyond any K."""

Start = Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
"""Starts an engine (or a server of one) with settings of re-routing beside the table, and ends it."""


def check_settings(settings: Sequence[PolicySpec]) -> None:
    """Refuse settings that no engine can run.

    Raises:
        ConfigError: A policy needs the scores of all experts, which routers of vLLM do not hand on.
    """
    for setting in settings:
        if setting.policy_class.needs_scores:
            raise ConfigError(
                f"setting {setting.label}: {setting.name} needs the router's scores of all experts, which "
                "vLLM does not hand on; on vLLM expected off, sere, random or topk, so evaluate it with "
                "--engine transformers"
            )


def by_engine(settings: Sequence[PolicySpec]) -> list[tuple[dict[str, Any], list[PolicySpec]]]:
    """Group settings by the engine that they need.

    Args:
        settings: In the order in which they are to be measured.

    Returns:
        For each engine the settings of its start and what is measured in it. ``sere`` settings that differ
        in S and ρ alone share one; what is no ``sere`` setting runs in any engine and so in the first.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[PolicySpec]] = {}
    first = next((_of_start(setting) for setting in settings if setting.needs_table), ())
    for setting in settings:
        groups.setdefault(_of_start(setting) if setting.needs_table else first, []).append(setting)
    return [(dict(options), group) for options, group in groups.items()]


def counted_changes(setting: PolicySpec) -> dict[str, Any]:
    """Return what to change in a running engine for a setting, so that its experts are counted; off too."""
    live = {name: value for name, value in setting.options.items() if name in LIVE}
    return dict(COUNT_ONLY) | live


def live_changes(setting: PolicySpec) -> dict[str, Any]:
    """Return what to change in a running engine for a setting as it would be served: off counts nothing."""
    return {"enabled": False} if setting.name == "off" else counted_changes(setting)


@contextmanager
def routed(llm: Any, setting: PolicySpec, *, seed: int = 0) -> Iterator[None]:
    """Let an engine run a setting: ``sere`` as the engine itself does it, others in its place.

    Who has which row, that prompts are exact, and the counters are the engine's in either case.

    Args:
        llm: An engine of this process, started with what ``by_engine`` says, eager.
        setting: What to run.
        seed: Of ``random``, unless the setting has its own.

    Raises:
        UnsupportedEngine: The expert kernel is not known to handle duplicate ids in a row.
    """
    configure(llm, **counted_changes(setting))
    if setting.needs_table:
        yield
        return
    state = state_of(llm)
    layers = list(state.layers.values())
    if setting.name != "off" and state.kernel not in SUPPORTS_DUPLICATES:
        raise UnsupportedEngine(
            f"setting {setting.label}: the expert kernel {state.kernel or 'in use'} is not known to "
            "handle duplicate ids within one token's top-k; evaluate it with --engine transformers"
        )
    policy = setting.build(seed=seed)
    prepared = [layer.prepared for layer in layers]
    for layer in layers:
        assert layer.budgets is not None
        assert layer.counters is not None
        router = policy.bind(layer.shape, layer.counters.device)
        router.counters = layer.counters
        # Of a prepared layer this asks its route alone.
        run = SimpleNamespace(route=partial(_route, router))
        layer.prepared = run  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, own in zip(layers, prepared, strict=True):
            layer.prepared = own


def _route(router: LayerRouter, batch: TokenBatch, counters: Tensor | None) -> Routing:
    del counters
    return router(batch)


def _of_start(setting: PolicySpec) -> tuple[tuple[str, Any], ...]:
    """Return a setting's options that are part of an engine's start."""
    return tuple(sorted((name, value) for name, value in setting.options.items() if name not in LIVE))
