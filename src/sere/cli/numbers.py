"""Numbers on the command line: one reading for all options, with errors that say what is valid."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

# Below the limits of every library that is handed such a number.
_DIGITS = 18


def whole(least: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number, written as ``10000``, ``10_000`` or ``1e4``; for argparse.

    Args:
        least: The smallest that is valid; None for any.
    """
    bound = "" if least is None else f" of at least {least}"

    def read(text: str) -> int:
        try:
            value = Decimal(text)
        except InvalidOperation:
            value = Decimal("NaN")
        fits = value.is_finite() and value.adjusted() < _DIGITS and value == value.to_integral_value()
        if not fits or (least is not None and value < least):
            raise argparse.ArgumentTypeError(
                f"expected a whole number{bound} (such as {max(64, least or 0)}, 10_000 or 1e4), got {text!r}"
            )
        return int(value)

    return read


def at_least(least: float, what: str, *, above: bool = False) -> Callable[[str], float]:
    """Return what reads a finite number from ``least`` on, or ``above`` it; for argparse.

    Args:
        least: The bound.
        what: What the number is, for the error.
        above: The bound itself is not valid.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (above and value == least):
            bound = "above" if above else "of at least"
            raise argparse.ArgumentTypeError(f"expected a number {bound} {least:g} ({what}), got {text!r}")
        return value

    return read
