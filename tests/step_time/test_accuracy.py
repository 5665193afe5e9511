"""What is said of the prediction's error is what the record of the comparison has."""

from __future__ import annotations

import json
from statistics import median

import pytest

from sere.step_time import accuracy
from tests.support.source import ROOT

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize("measured", [False, True], ids=["fitted", "measured"])
def test_the_error_is_that_of_the_record(measured: bool) -> None:
    """Number of cells, median and largest error are those of benchmarks/results/step_time.json, rounded."""
    groups = json.loads((ROOT / "benchmarks/results/step_time.json").read_text("utf-8"))["groups"]
    cells = [cell for group in groups if group["measured"] is measured for cell in group["cells"]]
    errors = [abs(cell["error"]) for cell in cells]
    said = accuracy.MEASURED if measured else accuracy.FITTED
    assert (said is None) == (not errors)
    if said is not None:
        assert said.cells == len(errors)
        assert (said.median, said.largest) == pytest.approx((median(errors), max(errors)), abs=0.0005)


def test_the_sentence_has_both_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says which of them was never found."""
    monkeypatch.setattr(accuracy, "FITTED", accuracy.Errors(9, 0.04, 0.2))
    monkeypatch.setattr(accuracy, "MEASURED", None)
    assert "In 9 of our own records" in accuracy.describe_accuracy()
    assert "nothing was compared yet" in accuracy.describe_accuracy()
    monkeypatch.setattr(accuracy, "MEASURED", accuracy.Errors(7, 0.08, 0.3))
    assert "measured like these, the predicted ratio was off by 8 %" in accuracy.describe_accuracy()
    assert "nothing was compared yet" not in accuracy.describe_accuracy()
