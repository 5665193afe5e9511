"""What is said of the prediction's error is what the record of the comparison has."""

from __future__ import annotations

import json
from statistics import median

import pytest

from sere.step_time import accuracy
from tests.support.source import ROOT

pytestmark = pytest.mark.checkout


def test_the_error_is_that_of_the_record() -> None:
    """Number of cells, median and largest error are those of benchmarks/results/step_time.json, rounded."""
    groups = json.loads((ROOT / "benchmarks/results/step_time.json").read_text("utf-8"))["groups"]
    errors = [abs(cell["error"]) for group in groups for cell in group["cells"]]
    assert len(errors) == accuracy.CELLS
    assert median(errors) == pytest.approx(accuracy.MEDIAN_ERROR, abs=0.005)
    assert max(errors) == pytest.approx(accuracy.LARGEST_ERROR, abs=0.005)
