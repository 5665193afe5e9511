"""The plug-in's settings: what is given under ``additional_config["sere"]``."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

from sere.config import RerouteConfig
from sere.errors import ConfigError, did_you_mean, name_some

KEY = "sere"
MOST_PORTS = 65535
_EXAMPLE = '{"active_experts": 24}'
_SWITCHES = (
    "enabled",
    "count_only",
    "count_experts",
    "allow_request_tiers",
    "share_rerouted_blocks",
    "allow_untested",
    "live_page",
)
# Names that no other plug-in's settings have.
_UNMISTAKABLE = (
    "select_top_k", "active_experts", "use_scale", "count_only", "count_experts", "request_tiers",
    "allow_request_tiers", "request_select_top_k", "share_rerouted_blocks",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginConfig:
    """Settings of re-routing and of the plug-in around it.

    Attributes:
        reroute: How to re-route.
        merge_given: Whether ``merge`` was among the settings; if not, the expert kernel decides.
        enabled: Whether re-routing is on when the engine starts; it can be switched later.
        count_only: Whether the engine counts experts and re-routes nothing; it can be switched later.
        count_experts: Whether each layer counts how often each of its experts is chosen and runs.
        allow_request_tiers: Whether a request may ask for anything of its own.
        request_tiers: What requests may ask for by name, tiers of the table and ``"off"``; None for all.
        request_select_top_k: The smallest and the largest S that a request may ask for, or nothing for none;
            None for any S, or for none where ``request_tiers`` names what requests may ask for.
        share_rerouted_blocks: Whether other requests may use blocks of the prefix cache that hold re-routed
            tokens.
        log_seconds: Seconds between log lines with statistics; 0 for none.
        metrics_port: Port on which rank 0 serves Prometheus metrics, or None; with data parallelism each
            further engine's takes the next port.
        metrics_host: Address of that port.
        live_page: Whether the server, if it has our routes, and ``metrics_port`` have the page ``/sere/``.
        allow_untested: Accept versions and combinations of features that nobody has tried.
        table_digest: What the front end found the table to be, so that each worker compares its own.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    reroute: RerouteConfig
    merge_given: bool = False
    enabled: bool = True
    count_only: bool = False
    count_experts: bool = False
    allow_request_tiers: bool = True
    request_tiers: tuple[str, ...] | None = None
    request_select_top_k: tuple[int, ...] | None = None
    share_rerouted_blocks: bool = True
    log_seconds: float = 60.0
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    live_page: bool = False
    allow_untested: bool = False
    table_digest: str | None = None

    def __post_init__(self) -> None:
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        object.__setattr__(self, "request_tiers", _names("request_tiers", self.request_tiers))
        object.__setattr__(self, "request_select_top_k", _range(self.request_select_top_k))
        seconds, port = self.log_seconds, self.metrics_port
        if (
            not isinstance(seconds, int | float)
            or isinstance(seconds, bool)
            or not 0 <= seconds <= threading.TIMEOUT_MAX
        ):
            raise ConfigError(f"log_seconds: expected seconds, 0 for no log lines, got {seconds!r}")
        if port is not None and (
            not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= MOST_PORTS
        ):
            raise ConfigError(f"metrics_port: expected a port from 1 to {MOST_PORTS}, got {port!r}")
        if self.table_digest is not None and not isinstance(self.table_digest, str):
            raise ConfigError(
                f"table_digest: expected the digest that the front end writes, got {self.table_digest!r}; "
                "leave it out"
            )
        if not isinstance(self.metrics_host, str) or not self.metrics_host:
            raise ConfigError(
                "metrics_host: expected an address to listen on, such as '127.0.0.1', "
                f"got {self.metrics_host!r}"
            )

    @classmethod
    def from_mapping(cls, values: object) -> Self:
        """Read the settings as the engine hands them on.

        Raises:
            ConfigError: Not a mapping, a key is unknown (the text names the nearest), or a value is invalid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f'additional_config["sere"]: expected settings such as {_EXAMPLE}, or {{}} for the defaults, '
                f'got {values!r}; to leave the engine alone, omit "sere"'
            )
        routing = {field.name for field in dataclasses.fields(RerouteConfig)}
        ours = {field.name for field in dataclasses.fields(cls)} - {"reroute", "merge_given"}
        for key in values:
            if key not in routing | ours:
                raise ConfigError(f"unknown setting {key!r}{did_you_mean(str(key), routing | ours)}")
        return cls(
            reroute=RerouteConfig.from_mapping({k: v for k, v in values.items() if k in routing}),
            merge_given="merge" in values,
            **{key: value for key, value in values.items() if key in ours},
        )


def _names(setting: str, given: object) -> tuple[str, ...] | None:
    """Return a list of names as a tuple."""
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f'{setting}: expected a list of names such as ["safe"], got {given!r}')
    return tuple(given)


def _range(given: object) -> tuple[int, ...] | None:
    """Return the smallest and the largest S of a request as a tuple, which is empty for none."""
    if given is None:
        return None
    if isinstance(given, list | tuple) and all(type(bound) is int for bound in given):
        bounds = tuple(given)
        if not bounds or (len(bounds) == 2 and 1 <= bounds[0] <= bounds[1]):
            return bounds
    raise ConfigError(
        "request_select_top_k: expected the smallest and the largest that a request may ask for, such as "
        f"[2, 4], or [] for none, got {given!r}"
    )


def section(vllm_config: Any) -> Any | None:
    """Return what ``additional_config["sere"]`` holds, or None.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
    """
    additional = getattr(vllm_config, "additional_config", None)
    return additional.get(KEY) if isinstance(additional, Mapping) else None


def resembles_key(name: object) -> bool:
    """Whether a name is not ``"sere"``, but may well be meant to be."""
    return (
        isinstance(name, str)
        and name != KEY
        and bool(get_close_matches(name.strip().lower(), [KEY], n=1, cutoff=0.8))
    )


def misplaced(vllm_config: Any) -> str | None:
    """Say what in ``additional_config`` looks like settings of re-routing that nothing will read, or None.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
    """
    additional = getattr(vllm_config, "additional_config", None)
    if not isinstance(additional, Mapping):
        return None
    asked = additional.get(KEY) is not None
    found = [
        name
        for name, value in additional.items()
        if _nearest(name) is not None
        or (not asked and name != KEY and (resembles_key(name) or _has_our_settings(value)))
    ]
    if found:
        outcome = "these are not read" if asked else "this engine will not re-route"
        return (
            f"additional_config has {name_some([*map(_with_nearest, found)])}, but settings of re-routing "
            f'belong under "sere", as in {{"sere": {_EXAMPLE}}}; {outcome}'
        )
    if KEY in additional and not asked:
        return (
            f'additional_config["sere"] is null, so this engine will not re-route; expected settings such as '
            f"{_EXAMPLE}"
        )
    return None


def _has_our_settings(value: object) -> bool:
    return isinstance(value, Mapping) and any(_nearest(name) is not None for name in value)


def _nearest(name: object) -> str | None:
    """Return the setting of ours that a name is, or is meant to be; None for a name that others may have."""
    close = get_close_matches(name, _UNMISTAKABLE, n=1, cutoff=0.85) if isinstance(name, str) else []
    return close[0] if close else None


def _with_nearest(name: object) -> str:
    """Return a name as a warning shows it, with the one that was probably meant."""
    meant = KEY if resembles_key(name) else _nearest(name)
    return repr(name) if meant in (None, name) else f"{name!r} (did you mean {meant!r}?)"
