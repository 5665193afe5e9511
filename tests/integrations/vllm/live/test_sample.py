"""What an engine counted between two moments."""

from __future__ import annotations

import dataclasses

import pytest

from sere.integrations.vllm.live.sample import Sample, means
from tests.support.vllm.live import counted, joined


def test_means_over_layers_and_steps() -> None:
    """Experts and rows are per step of a layer, shares per slot; a layer that saw no step weighs nothing."""
    found = Sample.of(joined(10, unseen=1), 5.0).since(Sample.of(joined(4, unseen=1), 3.0))
    assert found is not None
    assert found.means() == {
        "rows": 4, "before": 8, "after": 4, "critical": 1, "rerouted": 0.5, "computed": 1.0,
    }  # fmt: skip
    assert found.by_kind()["rerouted"] == 6
    assert found.experts_not_read() == 6 * 2 * 4


def test_no_step_has_no_means() -> None:
    """Where nothing was counted nothing is claimed: None, and no 0."""
    assert set(Sample.of(joined(0), 1.0).means().values()) == {None}
    assert set(means([]).values()) == {None}
    assert Sample.of(joined(0), 1.0).is_empty
    assert not Sample.of(joined(1), 1.0).is_empty


def test_counters_that_went_down_were_reset() -> None:
    """Nothing is computed across a reset, or between an engine and another one."""
    assert Sample.of(joined(3), 2.0).since(Sample.of(joined(4), 1.0)) is None
    assert Sample.of(joined(9, layers=3), 2.0).since(Sample.of(joined(4), 1.0)) is None


@pytest.mark.parametrize("name", ["enabled", "count_only", "select_top_k"])
def test_settings_without_paths(name: str) -> None:
    """What can be changed is there; where the table lies is not."""
    settings = Sample.of(joined(1), 1.0).settings
    assert name in settings
    assert "table" not in settings


def test_the_order_of_counters_is_theirs() -> None:
    """A layer's sums are read by their names' order."""
    sample = Sample.of(joined(2, layers=1), 1.0)
    assert dataclasses.asdict(sample)["layers"] == {0: tuple(counted(2))}
