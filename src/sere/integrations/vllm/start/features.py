"""Features of the engine that cannot be combined with re-routing, each with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from sere.config import RerouteConfig
from sere.errors import UnsupportedEngine


def check_features(vllm_config: Any, *, allow_untested: bool) -> None:
    """Refuse a configuration in which rows of a step could be mistaken for other rows.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        allow_untested: Let pass what may work but was never tried.

    Raises:
        UnsupportedEngine: Re-routing does not support a feature that is on; the text says why.
    """
    for name, reason, way_out in _wrong(vllm_config):
        raise UnsupportedEngine(f"{name}: {reason}; {way_out}")
    if allow_untested:
        return
    for name, reason in _untested(vllm_config):
        raise UnsupportedEngine(
            f'{name}: {reason}; switch it off, or set "allow_untested": true among the settings of sere'
        )


def _wrong(vllm_config: Any) -> Iterator[tuple[str, str, str]]:
    parallel = vllm_config.parallel_config
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        yield (
            "dual batch overlap",
            "each half of the batch would read the budgets of the first half's rows",
            "start without --enable-dbo",
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        yield (
            "prefill context parallelism",
            "each rank sees only a part of the rows, so it would read budgets of other rows",
            "start without --prefill-context-parallel-size",
        )
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, Mapping) and additional.get("decode_backend") == "latency_specialized":
        yield (
            "decode_backend latency_specialized",
            "its decode steps choose their experts without vLLM's router, so nothing would be re-routed",
            "start without decode_backend in additional_config",
        )
    if getattr(getattr(vllm_config, "cache_config", None), "kv_sharing_fast_prefill", False):
        yield (
            "kv_sharing_fast_prefill",
            "its later layers see only the rows whose logits are wanted, so they would read budgets of other "
            "rows",
            "start without --kv-sharing-fast-prefill",
        )
    if _is_diffusion(vllm_config):
        yield (
            "block diffusion",
            "the model computes a block of tokens together, so no step decodes a single token and nothing "
            "would be re-routed",
            "serve it without sere",
        )
    if os.environ.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0"):
        yield (
            "VLLM_BATCH_INVARIANT",
            "re-routing makes a request's output depend on the batch it runs in, which this mode rules out",
            "start without VLLM_BATCH_INVARIANT, or without sere",
        )


def _untested(vllm_config: Any) -> Iterator[tuple[str, str]]:
    if getattr(getattr(vllm_config, "speculative_config", None), "enable_adaptive_verification", False):
        yield (
            "adaptive verification of drafts",
            "the device drops drafted tokens by itself, and steps in which it does are not re-routed",
        )

    if getattr(vllm_config.parallel_config, "enable_elastic_ep", False):
        yield (
            "elastic expert parallelism",
            "its ranks come and go while serving, and with them layers and what they counted",
        )
    if (substituted := _substituted_experts(vllm_config)) is not None:
        yield (
            f"expert substitution ({substituted})",
            "vLLM computes a constant in the place of some experts, and the table has the similarities of "
            "those experts",
        )


def _substituted_experts(vllm_config: Any) -> str | None:
    """Return which part of the model's config asks vLLM (0.33) to replace experts by constants, or None."""
    config = getattr(getattr(vllm_config, "model_config", None), "hf_config", None)
    for holder in (config, getattr(config, "text_config", None)):
        if getattr(holder, "approximate_experts", None):
            return "approximate_experts"
        compression = getattr(holder, "compression_config", None)
        transforms = compression.get("transform_config") if isinstance(compression, Mapping) else None
        if isinstance(transforms, Mapping) and transforms.get("expert_substitution"):
            return "compression_config"
    return None


def refuse_gathering(name: str, gathers: bool | None, *, allow_untested: bool) -> None:
    """Refuse an MoE layer whose rows are not this rank's alone when its router is called.

    Args:
        name: vLLM's name of the layer.
        gathers: Whether the rows of all data-parallel or sequence-parallel ranks are gathered before the
            router is called; None where it cannot be told.
        allow_untested: Let pass what cannot be told.

    Raises:
        UnsupportedEngine: They are, or it cannot be told.
    """
    if gathers:
        raise UnsupportedEngine(
            f"{name}: its expert kernel has vLLM gather the rows of all ranks before the router is called, "
            "which would then read budgets of other rows; choose another kernel (--moe-backend), or start "
            "without data parallelism"
        )
    if gathers is None and not allow_untested:
        raise UnsupportedEngine(
            f"{name}: it cannot be told whether vLLM gathers the rows of all data-parallel ranks before the "
            'router is called; start without data parallelism, or set "allow_untested": true among the '
            "settings of sere"
        )


def _is_diffusion(vllm_config: Any) -> bool:
    model_config = getattr(vllm_config, "model_config", None)
    return bool(
        getattr(vllm_config, "diffusion_config", None) is not None
        or getattr(model_config, "is_diffusion", False)
    )


def surprises(vllm_config: Any, config: RerouteConfig) -> Iterator[str]:
    """Yield one sentence for each use of an engine that leaves nothing to re-route.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        config: The current settings.
    """
    if config.phases == "all":
        return
    if getattr(getattr(vllm_config, "model_config", None), "runner_type", None) == "pooling":
        yield (
            "this engine embeds or classifies (runner 'pooling'): all of its steps are prompts, which are "
            "re-routed only with phases='all', so nothing will be re-routed"
        )
    if getattr(getattr(vllm_config, "kv_transfer_config", None), "kv_role", None) == "kv_producer":
        yield (
            "this engine reads prompts for another one that decodes (kv_role 'kv_producer'): prompts are "
            "re-routed only with phases='all', so turn re-routing on in the engine that decodes"
        )
