"""M, how many experts a layer reads in a step: its forms, in Python, in JSON and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

from sere.config.checks import MOST_INT, as_integer, check_integer
from sere.errors import ConfigError

MOST_POINTS = 256
"""Most points (rows, M): as many numbers of rows have an M of their own."""

ActiveExperts = int | float | Literal["auto"] | tuple[tuple[int, int], ...]
"""M: a number of experts, a share of E (a float up to 1), ``"auto"``, or points (rows of the step, M)."""


def read_active_experts(value: object) -> ActiveExperts:
    """Return a setting of M in its one form.

    Args:
        value: An integer of at least 0, a float above 0 and up to 1, ``"auto"``, or points (rows, M) in the
            order of the rows, as tuples or lists.

    Raises:
        ConfigError: It is something else; True and False are.
    """
    if isinstance(value, str):
        if value != "auto":
            raise ConfigError(_expected(value))
        return "auto"
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return _points(list(value))
    try:
        return check_integer("active_experts", as_integer(value), least=0)
    except TypeError:
        pass
    # No NaN, which is in no range; False and True are no shares.
    if type(value) is not bool and isinstance(value, Real) and 0 < float(value) <= 1:
        return float(value)
    raise ConfigError(_expected(value))


def active_experts_of_text(text: str) -> ActiveExperts:
    """Return a setting of M as it is typed: ``24``, ``0.25``, ``auto`` or ``1-8/8-24/32-36``.

    Args:
        text: Points are ROWS-M, with ``/`` between them.

    Raises:
        ValueError: It has none of these forms.
        ConfigError: It has, but is out of range.
    """
    if text == "auto":
        return read_active_experts(text)
    number = _number(text)
    if number is not None:
        return read_active_experts(number)
    return read_active_experts([[int(part) for part in point.split("-")] for point in text.split("/")])


def text_of_active_experts(value: ActiveExperts) -> str:
    """Return a setting of M as it is typed; it reads back as the same value."""
    if isinstance(value, tuple):
        return "/".join(f"{rows}-{most}" for rows, most in value)
    # With a decimal point or an exponent, a share of all experts is not one expert.
    return repr(value) if isinstance(value, float) else str(value)


def may_be_zero(value: ActiveExperts) -> bool:
    """Whether M is 0 for some number of rows."""
    return any(most == 0 for _, most in value) if isinstance(value, tuple) else value == 0


def json_of_active_experts(value: ActiveExperts) -> Any:
    """Return a setting of M as JSON has it; `read_active_experts` reads it back."""
    return [list(point) for point in value] if isinstance(value, tuple) else value


def _number(text: str) -> int | float | None:
    """Return a typed number; an integer where it is written as one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _expected(value: object) -> str:
    return (
        'active_experts: expected a number of experts such as 32, a share of them such as 0.25, "auto", or '
        f"points (rows, experts) such as [[8, 24], [32, 32]], got {value!r}"
    )


def _points(given: list[Any]) -> tuple[tuple[int, int], ...]:
    """Return checked points (rows, M)."""
    if len(given) > MOST_POINTS:
        raise ConfigError(
            f"active_experts: expected at most {MOST_POINTS} points (rows, experts), got {len(given)}"
        )
    try:
        points = tuple((as_integer(rows), as_integer(most)) for rows, most in given)
    except (TypeError, ValueError):
        raise ConfigError(_expected(given)) from None
    rows = [point[0] for point in points]
    if not points or rows != sorted(set(rows)) or rows[0] < 1 or min(most for _, most in points) < 0:
        raise ConfigError(_expected(given))
    if max(max(point) for point in points) > MOST_INT:
        raise ConfigError(_expected(given))
    return points
