"""What one request may ask for: a tier of the table, its own S, or its full quality."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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


class Allowed(NamedTuple):
    """What requests may ask for.

    Attributes:
        names: Tiers of the table, and ``"off"``.
        least: The smallest S.
        most: The largest S; 0 where requests may give none.
    """

    names: frozenset[str]
    least: int = 1
    most: int = PROTECTED

    @classmethod
    def of(cls, names: Iterable[str], slots: Sequence[int]) -> Allowed:
        """Return what settings allow that say all of it.

        Args:
            names: The setting ``request_tiers``.
            slots: The setting ``request_select_top_k``: the smallest and the largest S, or nothing.
        """
        least, most = slots or (1, 0)
        return cls(frozenset(names), least, most)

    @property
    def tiers(self) -> list[str]:
        """The tiers among the names, sorted."""
        return sorted(self.names - {OFF})


class Asked(NamedTuple):
    """What one request asks for.

    Attributes:
        budget: S of its rows, ``PROTECTED`` for ``"off"``; None for that of the layers.
        tier: A tier of the table, for M of the steps in which the request decodes; None for the engine's.
    """

    budget: int | None = None
    tier: str | None = None


NOTHING = Asked()


def parse_request(extra_args: Mapping[str, Any] | None, allowed: Allowed) -> Asked:
    """Read what a request asks for.

    Args:
        extra_args: ``SamplingParams.extra_args``, which ``vllm_xargs`` of the OpenAI API becomes. Under
            ``"sere"``: ``"off"``, the name of a tier, S as an integer, or ``{"tier": name,
            "select_top_k": S}`` with one of them or both, also as JSON text, because the extra arguments of
            the API are flat.
        allowed: What requests may ask for.

    Raises:
        ConfigError: The value is something else, or not allowed; the text says what is, and how it is sent.
    """
    value = (extra_args or {}).get(KEY)
    if value is None:
        return NOTHING
    if isinstance(value, str):
        if value in allowed.names:
            return _tier(value, allowed)
        value = _decoded(value, allowed)
    if not isinstance(value, Mapping):
        return Asked(_budget(value, allowed))
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"sere: a request cannot set {key!r}{did_you_mean(str(key), _KEYS)}")
    if not value:
        raise ConfigError(_expected(value, allowed))
    asked = _tier(value["tier"], allowed) if "tier" in value else NOTHING
    if "select_top_k" not in value:
        return asked
    if asked.budget is not None:
        raise ConfigError(f'sere: a request that is "off" has no select_top_k, got {_shown(value)}')
    return asked._replace(budget=_budget(value["select_top_k"], allowed))


def _tier(name: object, allowed: Allowed) -> Asked:
    if not isinstance(name, str) or name not in allowed.names:
        raise ConfigError(f"sere: unknown tier {_shown(name)}; {_choices(allowed)}")
    return Asked(budget=PROTECTED) if name == OFF else Asked(tier=name)


def _budget(value: object, allowed: Allowed) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(_expected(value, allowed))
    budget = min(value, PROTECTED)
    if not allowed.least <= budget <= allowed.most:
        raise ConfigError(_expected(value, allowed))
    return budget


def _decoded(text: str, allowed: Allowed) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # Not JSON, or too many digits, or too deep.
        raise ConfigError(_expected(text, allowed)) from None


def _choices(allowed: Allowed) -> str:
    """Say what requests may ask for, and in which form it is sent."""
    if not allowed.names and not allowed.most:
        return "this engine lets no request set anything for itself; leave it out"
    choices = [f'"{OFF}"'] if OFF in allowed.names else []
    if tiers := allowed.tiers:
        choices.append(f"one of {name_some(tiers)}")
    if 0 < allowed.most < PROTECTED:
        choices.append(f"a select_top_k from {allowed.least} to {allowed.most}")
    example = OFF if OFF in allowed.names else tiers[0] if tiers else allowed.least
    reason = ", because the table has no tiers" if allowed.names == {OFF} else ""
    return (
        f"a request can ask for {' or '.join(choices)} here{reason}; over HTTP this is "
        f'"vllm_xargs": {{"sere": {json.dumps(example)}}}'
    )


def _expected(value: object, allowed: Allowed) -> str:
    return (
        f'sere: expected "{OFF}", a tier, or {{"select_top_k": S}} with S an integer of at least 1, '
        f"for this request, got {_shown(value)}; {_choices(allowed)}"
    )


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):
        shown = f"{type(value).__name__} that is too large to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
