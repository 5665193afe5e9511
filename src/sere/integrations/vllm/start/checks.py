"""The engine's front end: refuse what is wrong before any process is started, and a request's bad values."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from sere.errors import BackendUnavailable, ConfigError
from sere.integrations.vllm.plugin_config import KEY, PluginConfig, resembles_key, section
from sere.integrations.vllm.prefix_cache import check_sharing
from sere.integrations.vllm.start import features, tables, versions
from sere.integrations.vllm.start.ports import check_ports
from sere.integrations.vllm.tiers import NOTHING, Allowed, parse_request
from sere.policies.sere import check_fit
from sere.reroute.backends.registry import BACKENDS


def check_start(vllm_config: Any) -> None:
    """Check settings, version, features and table.

    The table's full path and digest, and what requests may ask for, are written into the settings. Workers
    check again; here an error reaches the user as it is, and no process waits for another.

    Args:
        vllm_config: vLLM's ``VllmConfig``, complete.

    Raises:
        SereError: Something is refused; the text says what was expected, what was found and what to do.
    """
    values = section(vllm_config)
    config = PluginConfig.from_mapping(values)
    versions.check_version(
        versions.engine_version(),
        device_type=vllm_config.device_config.device_type,
        allow_untested=config.allow_untested,
    )
    features.check_features(vllm_config, allow_untested=config.allow_untested)
    check_sharing(config, vllm_config)
    check_ports(config.metrics_port, getattr(vllm_config.parallel_config, "data_parallel_size", 1))
    model_config = vllm_config.model_config
    path = tables.find_table(config.reroute.table, model_config)
    table = tables.load_table(path, model_config)
    tables.check_same(path, table, config.table_digest)
    check_fit(table.settings(config.reroute), table.layers)
    device_type, K = vllm_config.device_config.device_type, table.identity.top_k
    _check_backend(config.reroute.backend, device_type, table.num_experts, K)
    allowed = tables.allowed_of_requests(table, config)
    # Workers may run in another folder, or on another machine with another file there.
    settings = dict(values or {}) | {
        "table": str(path),
        "table_digest": tables.digest(table),
        "request_tiers": sorted(allowed.names),
        "request_select_top_k": [allowed.least, allowed.most] if allowed.most else [],
    }
    vllm_config.additional_config = dict(vllm_config.additional_config) | {KEY: settings}


def check_requests(processor_class: Any) -> None:
    """Let the class that takes in requests refuse a bad ``sere`` value, in engines that re-route.

    Args:
        processor_class: vLLM's ``InputProcessor``.
    """
    process = processor_class.process_inputs
    if getattr(process, "sere", False):
        return

    @functools.wraps(process)
    def process_inputs(
        self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        values = section(self.vllm_config)
        if values is not None:
            # As `check_start` has written them.
            allowed = Allowed.of(values["request_tiers"], values["request_select_top_k"])
            check_request(getattr(params, "extra_args", None), allowed)
        return process(self, request_id, prompt, params, *args, **kwargs)

    process_inputs.sere = True  # type: ignore[attr-defined]
    processor_class.process_inputs = process_inputs


def check_request(extra_args: Any, allowed: Allowed) -> None:
    """Refuse a request's value as vLLM refuses its own: the API answers with 400, other requests go on.

    Args:
        extra_args: Of the request's ``SamplingParams``.
        allowed: What requests may ask for.

    Raises:
        ConfigError: The value is not one that a request may have, or such a value is under a misspelled name,
            which nothing would read; the error is also vLLM's ``VLLMValidationError``.
    """
    try:
        parse_request(extra_args, allowed)
    except ConfigError as error:
        raise _refusal()(str(error)) from None
    for name in filter(resembles_key, extra_args or ()):
        if _is_meant(extra_args[name], allowed):
            raise _refusal()(f"sere: expected a request's own setting under {KEY!r}, got {name!r}; rename it")


def _is_meant(value: Any, allowed: Allowed) -> bool:
    try:
        return parse_request({KEY: value}, allowed) != NOTHING
    except ConfigError:
        return False


@functools.cache
def _refusal() -> type[ConfigError]:
    """Return an error class that is ours and vLLM's."""
    theirs = getattr(import_module("vllm.exceptions"), "VLLMValidationError", None)
    # Theirs first: its constructor sets what its text is made of.
    return ConfigError if theirs is None else type("RequestRefused", (theirs, ConfigError), {})


def _check_backend(backend: str, device_type: str, E: int, K: int) -> None:
    """Refuse a backend that no worker could run; the device itself is left to them.

    Raises:
        BackendUnavailable: It was named and is for other devices or smaller layers, or lacks its package.
    """
    reason = None if backend == "auto" else BACKENDS[backend].why_never(device_type, E, K)
    if reason is not None:
        raise BackendUnavailable(f"backend {backend!r} cannot run here: {reason}")
