"""What the table says without the model, and how many bytes a step reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sere.errors import TableError
from sere.structure import find_experts
from sere.tune.simulate import simulate, simulate_layers
from sere.tune.speed import StepBytes, fewest_for
from tests.support.tuning import routed_table, tuned_model


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


def test_the_bytes_of_a_step(model: Any) -> None:
    """All weights but the routed experts and the input embeddings, and the experts that are needed."""
    size = StepBytes.of(model)
    experts = [one.module for one in find_experts(model)]
    routed = sum(p.numel() * p.element_size() for one in experts for p in one.parameters())
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    embeddings = model.get_input_embeddings().weight
    assert size.layers == 2
    assert size.expert * 16 * 2 == routed
    assert size.rest == whole - routed - embeddings.numel() * embeddings.element_size()
    assert size.speedup(10, 5) == size.read(10) / size.read(5)


def test_the_fewest_bytes_that_were_asked_for(model: Any) -> None:
    """The largest M that is fast enough; where none is, the smallest there is."""
    size, found = StepBytes.of(model), simulate(routed_table(model), 8)
    M = fewest_for(1.1, found, size)
    assert size.speedup(found[M].before, found[M].after) >= 1.1
    assert size.speedup(found[M + 1].before, found[M + 1].after) < 1.1
    assert fewest_for(50, found, size) == min(found)
