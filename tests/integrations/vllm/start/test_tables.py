"""The table must be the one of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sere.errors import TableMismatch
from sere.integrations.vllm.start import tables
from sere.similarity.layer import LayerSimilarity
from sere.table.tiers import Tier


def test_coverage(any_table: Any) -> None:
    """The layers of the table, or those that a pipeline stage holds, are accepted; it may hold none."""
    tables.check_coverage(any_table, {0, 1}, stage=None)
    tables.check_coverage(any_table, {1}, stage=range(1, 4))
    # A stage of dense layers.
    tables.check_coverage(any_table, set(), stage=range(2, 4))


@pytest.mark.parametrize(
    ("found", "stage"),
    [({1}, None), (set(), range(1, 4)), ({1}, range(2)), (set(), None)],
    ids=["layer missing", "none of the stage", "part of the stage", "none"],
)
def test_layers_that_differ(any_table: Any, found: set[int], stage: range | None) -> None:
    """A model without a layer of the table is refused."""
    with pytest.raises(TableMismatch, match="but the engine built MoE layers"):
        tables.check_coverage(any_table, found, stage=stage)


def test_layer_of_another_size(any_table: Any) -> None:
    """A layer with another number of experts than the table has for it is refused by name."""
    tables.check_layer(any_table, 0, "model.layers.0.mlp.experts", E=16)
    with pytest.raises(
        TableMismatch, match=r"model.layers.0.mlp.experts: .* 16 experts in layer 0, but this layer has 8"
    ):
        tables.check_layer(any_table, 0, "model.layers.0.mlp.experts", E=8)


def test_table_of_another_rank(any_table: Any) -> None:
    """What the front end found must be what a worker finds, similarities and tiers."""
    expected = tables.digest(any_table)
    tables.check_same(Path("anywhere.sere"), any_table, expected)
    tables.check_same(Path("anywhere.sere"), any_table, None)
    first = any_table.layers[0].similarity.clone()
    first[0, 1] = 0.5
    layers = {**any_table.layers, 0: LayerSimilarity(first)}
    for other in (
        any_table.with_tiers({"fast": Tier("fast", 3)}),
        dataclasses.replace(any_table, layers=layers),
    ):
        with pytest.raises(
            TableMismatch, match=r"here.sere on .*: expected the table that the engine was st"
        ):
            tables.check_same(Path("here.sere"), other, expected)
