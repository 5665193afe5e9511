"""How far predicted ratios were from measured ones; docs/measurements.md, "Predicted times"."""

from __future__ import annotations

CELLS = 0
"""Records compared, on CPUs only: nothing was compared on a GPU."""
MEDIAN_ERROR = 0.0
"""Median relative error of the ratio."""
LARGEST_ERROR = 0.0
"""Largest relative error of the ratio."""


def describe_accuracy() -> str:
    """Return the error of the prediction in one sentence."""
    return (
        f"In {CELLS} of our own records of vLLM on CPUs, the predicted ratio was off by "
        f"{100 * MEDIAN_ERROR:.0f} % in the median and by {100 * LARGEST_ERROR:.0f} % at most. Nothing was "
        "compared on a GPU."
    )
