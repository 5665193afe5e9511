"""``apply``: check that table, settings and model fit, then set the hooks."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sere.config import RerouteConfig, as_integer
from sere.defaults import required_table
from sere.errors import AlreadyApplied, ConfigError, InputError, TableMismatch, name_some
from sere.integrations.transformers.call import CurrentCall
from sere.integrations.transformers.compiled import refuse_compiled
from sere.integrations.transformers.flat_experts import fit_gains
from sere.integrations.transformers.guard import Guard
from sere.integrations.transformers.handle import Handle
from sere.integrations.transformers.hooks import (
    HookedLayer,
    hook_calls,
    hook_experts,
    hook_router,
    step_dtypes,
)
from sere.integrations.transformers.live_settings import LiveSettings
from sere.policies.base import LayerShape, Policy
from sere.policies.baseline import check_switch
from sere.structure import ExpertsLayer, find_experts, identity_of, is_rerouted, text_config
from sere.table import SimilarityTable, locate_table
from sere.versions import warn_untested
from sere.warn_once import WarnOnce
from sere.wrappers import callers, execution_device, inner_model

logger = logging.getLogger("sere")
warn_once = WarnOnce(logger)


def apply(
    model: nn.Module,
    table: SimilarityTable | str | os.PathLike[str] | None = None,
    *,
    policy: Policy | None = None,
    pad_token_id: int | None = None,
    config: RerouteConfig | None = None,
    count_experts: bool = False,
    **settings: Any,
) -> Handle:
    """Re-route the decode steps of a Transformers model, until the handle is removed.

    A forward pre-hook on each experts module changes expert ids and gate weights on their way in; nothing is
    patched and nothing is global. Prefill stays bit-identical unless ``phases="all"``, and rows that are
    padding or have finished have no primary experts. docs/transformers.md lists these calls and rows, and
    what works together: ``generate``, static caches, assisted decoding, ``device_map``, adapters and other
    wrappers, ``torch.compile`` (apply before compiling), copies, threads.

    If nothing changes, the logger ``sere`` says why, once; see `Handle`.

    Args:
        model: A causal language model of Transformers with experts modules, or a module that holds one; see
            ``sere.structure``.
        table: The similarity table, or its path; may be given in the settings instead. Without one, the
            ``similarity.sere`` in the folder that the model was loaded from, or else ``NAME.sere`` in the
            current folder, where NAME is the model's.
        policy: Another routing rule than SERE; then neither a table nor settings.
        pad_token_id: The token fed to finished rows, if not the one ``generate`` would use; -1 for none.
        config: The settings as one object.
        count_experts: Whether to count how often each expert is chosen and runs, for `Handle.expert_counts`;
            a few tensor operations in each layer and step.
        **settings: The settings by name, instead of ``config``: ``active_experts=24``, ``tier="fast"`` and so
            on. None is needed.

    Returns:
        The handle, which is a context manager.

    Raises:
        AlreadyApplied: Re-routing is active on this model.
        BackendUnavailable: The settings name a backend that cannot run on a layer's device, or not with the
            dtypes of this model.
        ConfigError: A setting is unknown, out of range, does not fit the table, or asks for
            ``merge="sentinel"``.
        InputError: The table is missing, an argument is of another kind, arguments exclude each other, or the
            model, or a part of it around its experts, is compiled already.
        TableError: The table cannot be read.
        TableMismatch: The table belongs to another model.
        UnsupportedModel: The model has no experts modules that can be re-routed, or the policy needs router
            scores that this model does not show.

    Source: docs/method.md section 4.
    """
    _check_kinds(model, table, policy, config)
    check_switch("count_experts", count_experts)
    warn_untested()
    outermost, model = model, inner_model(model)
    layers = find_experts(model)
    refuse_compiled(outermost, [layer.module for layer in layers])
    if is_rerouted(layers):
        raise AlreadyApplied("re-routing is active on this model already; call remove() on its handle first")
    live = None
    if policy is None:
        config = _config(config, settings)
        fitted = fit_gains(_load(table, config, model, layers), layers, config.flatten)
        live = LiveSettings(fitted, config)
        policy = live.rule()
    elif table is not None or config is not None or settings:
        raise InputError("policy: give either a policy, or a table and settings for SERE, not both")
    if policy.config is not None:
        _refuse_sentinel(policy.config)
    guard = Guard(
        policy,
        model=type(model).__name__,
        top_k=max(layer.top_k for layer in layers),
        num_experts=max(layer.num_experts for layer in layers),
    )
    token = finished_token(model, pad_token_id)
    handle = _hook(model, layers, guard, live, token, count_experts=count_experts)
    idle = policy.why_idle([LayerShape(one.index, one.num_experts, one.top_k) for one in layers])
    guard.warned = sum(_warn(guard.model, reason) for reason in idle) > 0
    if policy.changes_routing and (slow := why_slow(model, layers)) is not None:
        _warn(guard.model, slow)
    return handle


def _hook(
    model: nn.Module,
    layers: list[ExpertsLayer],
    guard: Guard,
    live: LiveSettings | None,
    pad_token_id: int | None,
    *,
    count_experts: bool,
) -> Handle:
    """Set all hooks, or none: if one fails, those that are set are removed."""
    policy = guard.policy
    flatten = "auto" if policy.config is None else policy.config.flatten
    hooks: list[RemovableHandle] = []
    hooked: list[HookedLayer] = []
    call = CurrentCall(
        guard,
        all_phases=policy.config is not None and policy.config.phases == "all",
        pad_token_id=pad_token_id,
    )
    dtypes = step_dtypes(model)
    try:
        for layer in layers:
            device = execution_device(layer.module)
            hooked.append(
                HookedLayer(layer, policy, device, flatten, count_experts=count_experts, dtypes=dtypes)
            )
            if policy.needs_scores:
                hooks.append(hook_router(model, hooked[-1], call))
            hooks.extend(hook_experts(layer.module, hooked[-1], call))
        guard.layers = hooked
        call.follow(policy, [layer.shape for layer in hooked])
        scored = hooked if policy.needs_scores else []
        hooks.extend(hook_calls(callers(model, [layer.name for layer in layers]), call, scored))
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise
    return Handle(guard, call, hooks, hooked, live)


def _check_kinds(model: object, table: object, policy: object, config: object) -> None:
    """Refuse arguments of another kind than expected; each text says what to give."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: expected a model of Transformers in memory, got {_kind(model)}; load it first, for "
            "example with AutoModelForCausalLM.from_pretrained"
        )
    if table is not None and not isinstance(table, SimilarityTable | str | os.PathLike):
        raise InputError(
            f"table: expected a similarity table or its path, got {_kind(table)}; make one with "
            "sere.calibrate"
        )
    if policy is not None and not isinstance(policy, Policy):
        raise InputError(f"policy: expected a routing rule of sere.policies, got {_kind(policy)}")
    if config is not None and not isinstance(config, RerouteConfig):
        raise ConfigError(
            f"config: expected a RerouteConfig, got {_kind(config)}; make one with "
            "RerouteConfig.from_mapping, or give the settings by name"
        )


def _kind(value: object) -> str:
    return type(value).__name__


def _warn(model: str, reason: str) -> bool:
    """Log a reason, the same one once per process; return whether it was logged now."""
    return warn_once((model, reason), "sere: %s: %s", model, reason)


def _config(config: RerouteConfig | None, settings: dict[str, Any]) -> RerouteConfig:
    if config is None:
        return RerouteConfig.from_mapping(settings)
    if settings:
        raise ConfigError(
            f"config: give either config or settings by name, not both (got {name_some(settings)})"
        )
    return config


def _load(
    table: SimilarityTable | str | os.PathLike[str] | None,
    config: RerouteConfig,
    model: nn.Module,
    layers: list[ExpertsLayer],
) -> SimilarityTable:
    """Return the table, from the argument or the settings, checked against the model."""
    source = config.table if table is None else table
    if source is None:
        source = required_table("re-routing", getattr(model, "name_or_path", None))
        logger.info("sere: using the table %s", source)
    if isinstance(source, SimilarityTable):
        source.check(identity_of(model, layers))
        return source
    loaded = SimilarityTable.load(locate_table(source))
    try:
        loaded.check(identity_of(model, layers))
    except TableMismatch as error:
        raise TableMismatch(f"{os.fspath(source)}: {error}") from error
    return loaded


def finished_token(model: nn.Module, given: int | None = None) -> int | None:
    """Return the token that ``generate`` feeds to finished rows, or None if it finishes none.

    Args:
        model: The model, with its generation config.
        given: The token, where the caller knows it; returned as it is.

    Raises:
        InputError: ``given`` is not an integer.
    """
    if given is not None:
        try:
            return as_integer(given)
        except TypeError:
            raise InputError(f"pad_token_id: expected one token id, or -1 for none, got {given!r}") from None
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return _first_id(getattr(text_config(model), "pad_token_id", None))
    end = _first_id(getattr(generation, "eos_token_id", None))
    pad = _first_id(getattr(generation, "pad_token_id", None))
    return None if end is None else end if pad is None else pad


def _first_id(value: Any) -> int | None:
    """The token id in a config: a number, several (of which the first), or None."""
    values = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
    if isinstance(values, list | tuple):
        values = values[0] if values else None
    return None if values is None else int(values)


def _refuse_sentinel(config: RerouteConfig) -> None:
    """Refuse ids of no expert: eager experts fail on them, grouped ones read another expert's weights."""
    if config.merge == "sentinel":
        raise ConfigError(
            f"merge: 'sentinel' (sentinel {config.sentinel}) is for engines whose expert kernels skip such "
            "ids; the experts of Transformers do not and would fail or give wrong output. "
            "Use merge='distinct' or merge='same'"
        )


def why_slow(model: nn.Module, layers: list[ExpertsLayer]) -> str | None:
    """Return why fewer distinct experts save no time here, or None if they do.

    Args:
        model: The model.
        layers: Its experts.

    Source: Transformers' ``batched_mm`` copies one expert's weights per token and slot, whichever they are.
    """
    given = getattr(text_config(model), "_experts_implementation", None)
    on_cpu = all(execution_device(layer.module).type == "cpu" for layer in layers)
    switches = given == "grouped_mm" and not on_cpu
    if given != "batched_mm" and not switches:
        return None
    why = (
        "generate switches grouped_mm to batched_mm for decode steps" if switches else "batched_mm is chosen"
    )
    return (
        f"re-routing will save no time: {why}, which copies one expert's weights per token and slot; load "
        "the model with experts_implementation='eager', or decode in your own loop with 'grouped_mm'"
    )
