"""Checks of single values; each refusal says what was expected, what came and what to do."""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection
from numbers import Real
from typing import Any

from sere.errors import ConfigError, did_you_mean

# Kernels take numbers of slots and experts as int32.
MOST_INT = (1 << 31) - 1

_MOST_FLOAT = sys.float_info.max


def as_integer(value: Any) -> int:
    """Return an integer of any kind, also numpy's, as a Python int.

    Raises:
        TypeError: It is not an integer; True and False are not.
    """
    if isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value}")
    return operator.index(value)


def check_integer(name: str, value: object, *, least: int) -> int:
    """Return an integer from ``least`` to ``MOST_INT`` as a Python int.

    Raises:
        ConfigError: It is something else.
    """
    try:
        number = as_integer(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if number > MOST_INT:
        raise ConfigError(f"{name}: expected an integer of at most {MOST_INT}, got {value!r}")
    return number


def check_threshold(value: object) -> float:
    """Return ρ as a Python number.

    Raises:
        ConfigError: It is not a finite number of at least 0.
    """
    number = _as_number(value)
    # No infinity, which JSON cannot carry; nan is in no range.
    if number is None or not 0 <= number <= _MOST_FLOAT:
        raise ConfigError(f"threshold: expected a number of at least 0 (a similarity), got {value!r}")
    return number


def check_share(name: str, value: object) -> float:
    """Return a share as a Python float.

    Raises:
        ConfigError: It is not a number from 0 to 1.
    """
    number = _as_number(value)
    if number is None or not 0 <= number <= 1:
        raise ConfigError(f"{name}: expected a number from 0 to 1 (a share), got {value!r}")
    return float(number)


def _as_number(value: object) -> int | float | None:
    """Return a number of any kind, also numpy's, as one of Python's own; None for what is no number."""
    if isinstance(value, bool):
        return None
    if not isinstance(value, int | float) and isinstance(value, Real):
        return float(value)
    return value if isinstance(value, int | float) else None


def check_boolean(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: It is something else, such as 1.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: expected true or false, got {value!r}")


def check_choice(name: str, value: object, valid: Collection[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ConfigError: It is something else; the text names the nearest choice.
    """
    if value not in valid:
        raise ConfigError(f"{name}: got {value!r}{did_you_mean(str(value), valid)}")


def check_layer_index(name: str, key: object, form: str, start: str) -> int:
    """Return the index of a layer; keys in JSON are strings.

    Args:
        name: The setting.
        key: The index.
        form: What the setting must be, with what came after it.
        start: What starts at 0, for the refusal of a negative index.

    Raises:
        ConfigError: It is not an integer of at least 0.
    """
    try:
        index = int(key) if isinstance(key, str) else as_integer(key)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected {form}") from None
    if index < 0:
        raise ConfigError(f"{name}: {start}")
    return index


def check_sentinel(merge: str, sentinel: int | None) -> None:
    """Refuse a sentinel without ``merge="sentinel"``, the merge without one, and one that is not an int32."""
    if merge == "sentinel" and (not isinstance(sentinel, int) or isinstance(sentinel, bool)):
        raise ConfigError(
            f"sentinel: merge='sentinel' needs the id for freed slots, e.g. -1; got {sentinel!r}"
        )
    # Ids may be int32, in which a larger number would wrap around to the id of a real expert.
    if merge == "sentinel" and sentinel is not None and not -(2**31) <= sentinel < 2**31:
        raise ConfigError(f"sentinel: expected an id in the range of int32, e.g. -1; got {sentinel}")
    if merge != "sentinel" and sentinel is not None:
        raise ConfigError(
            f"sentinel: given ({sentinel!r}) but merge is {merge!r}; set merge='sentinel' or omit sentinel"
        )
