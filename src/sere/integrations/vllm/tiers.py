"""What one request may ask for: a tier of the table, its own S, or its full quality."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sere.errors import ConfigError, did_you_mean, name_some
from sere.integrations.vllm.plugin_config import KEY

# A budget that no router's K reaches: the row keeps all its experts.
PROTECTED = 1 << 20

OFF = "off"
"""What a request asks for that keeps all its experts."""

_KEYS = ("select_top_k", "tier")
# Characters of a wrong value that an error repeats.
_SHOWN = 200


class Asked(NamedTuple):
    """What one request asks for.

    Attributes:
        budget: S of its rows, ``PROTECTED`` for ``"off"``; None for that of the layers.
        tier: A tier of the table, for M of the steps in which the request decodes; None for the engine's.
    """

    budget: int | None = None
    tier: str | None = None


NOTHING = Asked()


def parse_request(extra_args: Mapping[str, Any] | None, tiers: Collection[str]) -> Asked:
    """Read what a request asks for.

    Args:
        extra_args: ``SamplingParams.extra_args``, which ``vllm_xargs`` of the OpenAI API becomes. Under
            ``"sere"``: ``"off"``, the name of a tier, S as an integer, or ``{"tier": name,
            "select_top_k": S}`` with one of them or both, also as JSON text, because the extra arguments of
            the API are flat.
        tiers: The tiers that requests may ask for.

    Raises:
        ConfigError: The value is something else, or there is no such tier; the text names those that exist.
    """
    value = (extra_args or {}).get(KEY)
    if value is None:
        return NOTHING
    if isinstance(value, str):
        if value == OFF or value in tiers:
            return _tier(value, tiers)
        value = _decoded(value, tiers)
    if not isinstance(value, Mapping):
        return Asked(_budget(value, tiers))
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"sere: a request cannot set {key!r}{did_you_mean(str(key), _KEYS)}")
    if not value:
        raise ConfigError(_expected(value, tiers))
    asked = _tier(value["tier"], tiers) if "tier" in value else NOTHING
    if "select_top_k" not in value:
        return asked
    if asked.budget is not None:
        raise ConfigError(f'sere: a request that is "off" has no select_top_k, got {_shown(value)}')
    return asked._replace(budget=_budget(value["select_top_k"], tiers))


def _tier(name: object, tiers: Collection[str]) -> Asked:
    if name == OFF:
        return Asked(budget=PROTECTED)
    if not isinstance(name, str) or name not in tiers:
        raise ConfigError(f"sere: unknown tier {_shown(name)}; {_choices(tiers)}")
    return Asked(tier=name)


def _budget(value: object, tiers: Collection[str]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(_expected(value, tiers))
    return min(value, PROTECTED)


def _decoded(text: str, tiers: Collection[str]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Not JSON, or too many digits, or too deep.
        raise ConfigError(_expected(text, tiers)) from None


def _choices(tiers: Collection[str]) -> str:
    if not tiers:
        return f'a request can ask for "{OFF}" here, because the table has no tiers'
    return f'a request can ask for "{OFF}" or one of {name_some(sorted(tiers))}'


def _expected(value: object, tiers: Collection[str]) -> str:
    return (
        f'sere: expected "{OFF}", a tier, or {{"select_top_k": S}} with S an integer of at least 1, '
        f"for this request, got {_shown(value)}; {_choices(tiers)}"
    )


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        shown = f"{type(value).__name__} that is too large to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
