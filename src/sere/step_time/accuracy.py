"""How far predicted ratios were from measured ones; docs/measurements.md, "Predicted times"."""

from __future__ import annotations

from typing import NamedTuple


class Errors(NamedTuple):
    """Relative errors of predicted ratios.

    Attributes:
        cells: Records compared.
        median: Of their errors.
        largest: Of their errors.
    """

    cells: int
    median: float
    largest: float


# What benchmarks/step_time.py prints at its end; None until there are any.
FITTED: Errors | None = Errors(76, 0.032, 0.195)
"""Where the ceilings were those that fit an engine's times best."""
MEASURED: Errors | None = Errors(88, 0.0417, 0.176)
"""Where the ceilings were measured on the machine."""


def describe_accuracy() -> str:
    """Return the error of the prediction in a few sentences."""
    known = [
        f"In {errors.cells} of our own records of vLLM on CPUs, with ceilings {which}, the predicted ratio "
        f"was off by {100 * errors.median:.0f} % in the median and by {100 * errors.largest:.0f} % at most."
        for errors, which in ((FITTED, "fitted to their times"), (MEASURED, "measured like these"))
        if errors is not None
    ]
    if MEASURED is None:
        known.append("With measured ceilings, as here, nothing was compared yet.")
    return f"{' '.join(known)} Nothing was compared on a GPU."
