"""What the table says without the model, and how much faster a step should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sere.errors import TableError
from sere.step_time import Ceilings
from sere.tune.simulate import simulate, simulate_layers
from sere.tune.speed import Speed, fewest_for
from tests.support.tuning import routed_table, tuned_model

# Slow at computing, so that pairs count.
CEILINGS = Ceilings(bytes_per_s=1e9, flops_per_s=1e9)


@pytest.fixture(scope="module")
def model() -> Any:
    return tuned_model()


def test_the_error_falls_to_nothing(model: Any) -> None:
    """From K experts on, more of them never lose more; with all that occur, nothing is lost."""
    table = routed_table(model)
    found = simulate(table, 8)
    assert list(found) == list(range(4, 17))
    errors = [one.error for one in found.values()]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.02
    assert errors[-1] == 0
    assert all(one.after <= one.before for one in found.values())
    assert found[16].before == found[16].after


def test_the_mean_is_over_the_layers(model: Any) -> None:
    """Each layer counts alike."""
    table = routed_table(model)
    layers, mean = simulate_layers(table, 4), simulate(table, 4)
    assert list(layers) == list(table.layers)
    assert mean[6].error == pytest.approx(sum(found[6].error for found in layers.values()) / len(layers))


def test_one_row_reads_its_own_experts(model: Any) -> None:
    """Nothing can be gained there: K is the only number, and loses nothing."""
    assert {M: one.error for M, one in simulate(routed_table(model), 1).items()} == {4: 0}


def test_a_table_without_routing_is_refused(model: Any) -> None:
    """The text says what to do."""
    with pytest.raises(TableError, match=r"does not hold the router's choices .* calibrate again"):
        simulate(replace(routed_table(model), routing=None), 4)


@pytest.fixture(scope="module")
def table(model: Any) -> Any:
    return routed_table(model)


def test_the_largest_number_that_is_fast_enough(model: Any, table: Any) -> None:
    """By bytes or by predicted time; where none is fast enough, the smallest there is."""
    found = simulate(table, 8)
    by_bytes, by_time = Speed.of(model, table, None), Speed.of(model, table, CEILINGS)
    for speed in (by_bytes, by_time):
        M = fewest_for(1.02, 8, found, speed)
        assert speed.times(8, found[M]) >= 1.02
        assert speed.times(8, found[M + 1]) < 1.02
        assert fewest_for(50, 8, found, speed) == min(found)
    assert by_bytes.times(8, found[4]) == by_bytes.weights.fewer_bytes(found[4].before, found[4].after)
    assert by_time.times(8, found[4]) != by_bytes.times(8, found[4])


def test_fewer_pairs_take_less_time_on_a_cpu_alone(model: Any, table: Any) -> None:
    """Kernels on a GPU compute every slot."""
    on_cpu, on_gpu = (
        Speed.of(model, table, replace(CEILINGS, device=device, overlaps=device == "cuda"))
        for device in ("cpu", "cuda")
    )
    found = simulate(table, 8)[6]
    fewer = found._replace(pairs=found.pairs / 2)
    assert on_cpu.times(8, fewer) > on_cpu.times(8, found)
    assert on_gpu.times(8, fewer) == on_gpu.times(8, found)


def test_a_least_gain_leaves_pairs_out(table: Any) -> None:
    """Without one, all slots stay."""
    without, gain = simulate(table, 8)[4], simulate(table, 8, min_gain=0.1)[4]
    assert without.pairs == 8 * 4
    assert gain.pairs < without.pairs
    assert gain.error > without.error
    assert gain.after == without.after


def test_layers_of_other_sizes_have_the_same_numbers(table: Any) -> None:
    """From the largest K of a layer to where no layer re-routes."""
    first, second = table.layers
    sample = table.routing
    narrow = replace(
        sample,
        ids=dict(sample.ids) | {second: sample.ids[second][:, :2]},
        weights=dict(sample.weights) | {second: sample.weights[second][:, :2]},
    )
    identity = replace(table.identity, slots={first: 4, second: 2})
    found = simulate_layers(replace(table, routing=narrow, identity=identity), 2)
    assert [list(one) for one in found.values()] == [[4, 5, 6, 7, 8]] * 2
    assert found[second][4].error == 0 < found[first][4].error
