"""What every record says of tables and layers."""

from __future__ import annotations

from sere.bench.target import random_table
from sere.reroute.stats import LayerStats
from sere.summaries import summarize_layers, summarize_table
from tests.support.tiny import tiny_model


def stats(index: int, steps: int, before: float, after: float) -> LayerStats:
    return LayerStats(
        index=index, name=f"layers.{index}", steps=steps, rows=4.0, distinct_before=before,
        distinct_after=after, slots_rerouted=0.5, slots_computed=0.75, critical=1.0,
    )  # fmt: skip


def test_means_are_over_the_layers_that_ran() -> None:
    """A layer without a step has no means, and does not lower those of the others."""
    found = summarize_layers([stats(0, 2, 8.0, 3.0), stats(1, 0, 0.0, 0.0), stats(4, 2, 6.0, 2.0)])
    assert found["distinct_before"] == 7.0
    assert found["distinct_after"] == 2.5
    assert (found["slots_rerouted"], found["slots_computed"]) == (0.5, 0.75)
    assert [layer["index"] for layer in found["layers"]] == [0, 4]
    assert [layer["distinct_after"] for layer in found["layers"]] == [3.0, 2.0]


def test_nothing_that_ran_has_no_means() -> None:
    """None, not zero: nothing was counted."""
    assert summarize_layers([stats(0, 0, 0.0, 0.0)]) == {
        "distinct_before": None, "distinct_after": None, "slots_rerouted": None, "slots_computed": None,
        "critical": None, "layers": [],
    }  # fmt: skip


def test_a_table_is_known_by_its_digest() -> None:
    """Metric and calibration tokens are for readers, the digest for comparisons."""
    table = random_table(tiny_model("qwen3_moe"))
    assert summarize_table(table) == {
        "fingerprint": table.fingerprint, "metric": "random", "calibration_tokens": 0,
    }  # fmt: skip
