"""The registry of metrics is what documents say of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sere.similarity import METRICS
from sere.similarity.metric import Metric
from tests.support.metrics import experts

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.checkout
@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith("cka_")])
def test_every_metric_is_in_the_method(name: str) -> None:
    """The table of docs/method.md section 3 has a row for it; cka with one kernel is part of cka's."""
    section = (DOCS / "method.md").read_text(encoding="utf-8").partition("## 3. ")[2].partition("## 4. ")[0]
    assert re.search(rf"^\| `{name}`", section, re.MULTILINE)


@pytest.mark.checkout
def test_the_documented_metric_is_its_definition() -> None:
    """The file that docs/adding-a-metric.md shows runs and computes what its definition says."""
    text = (DOCS / "adding-a-metric.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(source, names)
    metric = names["METRIC"]
    assert isinstance(metric, Metric)
    assert metric.accumulator is not None
    Y = experts(5, 12, 3)
    accumulator = metric.accumulator(5, dtype=torch.float64)
    for part in (slice(0, 7), slice(7, 12)):
        accumulator.update(Y[:, part])
    found = accumulator.finalize().similarity.double()
    torch.testing.assert_close(found, metric.definition(Y), atol=1e-6, rtol=0)


def test_a_metric_is_of_outputs_or_of_weights() -> None:
    """One with neither has nothing that computes it."""
    with pytest.raises(ValueError, match="metric 'toy': expected either an accumulator or of_weights"):
        Metric(name="toy", summary="", definition=torch.ones)
