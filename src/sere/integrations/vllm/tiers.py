"""Quality tiers: what one request may ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sere.errors import ConfigError, did_you_mean
from sere.integrations.vllm.plugin_config import KEY

# A budget that no router's K reaches: the row keeps all its experts.
PROTECTED = 1 << 20
# An S that is beyond any router's K too, but whose rows count: the engine counts experts and re-routes none.
COUNT_ONLY_S = 1 << 19

_KEYS = ("select_top_k",)
# Characters of a wrong value that an error repeats.
_SHOWN = 200


def parse_tier(extra_args: Mapping[str, Any] | None) -> int | None:
    """Read a request's own budget.

    Args:
        extra_args: ``SamplingParams.extra_args``, which ``vllm_xargs`` of the OpenAI API becomes. Under
            ``"sere"``: ``"off"``, S as an integer, or ``{"select_top_k": S}``, the last also as JSON
            text, because the API's extra arguments are flat.

    Returns:
        S for the request's rows, ``PROTECTED`` for ``"off"``, or None for the engine's setting.

    Raises:
        ConfigError: The value is something else.
    """
    value = (extra_args or {}).get(KEY)
    if value is None:
        return None
    if isinstance(value, str):
        if value == "off":
            return PROTECTED
        value = _decoded(value)
    if isinstance(value, Mapping):
        for key in value:
            if key not in _KEYS:
                raise ConfigError(f"sere: a request cannot set {key!r}{did_you_mean(str(key), _KEYS)}")
        value = value.get("select_top_k")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(_expected(value))
    return min(value, PROTECTED)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Not JSON, or too many digits, or too deep.
        raise ConfigError(_expected(text)) from None


def _expected(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        shown = f"{type(value).__name__} that is too large to show"
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return (
        'sere: expected "off", or {"select_top_k": S} with S an integer of at least 1, '
        f"for this request, got {shown}"
    )
