"""The pictures of a table."""

from __future__ import annotations

import sys
from itertools import groupby

import pytest
import torch

from sere.errors import MissingDependency
from sere.similarity import LayerSimilarity
from sere.table import plot
from tests.support.tables import identity, matrix, table


def test_pictures_of_many_layers_show_evenly_chosen_ones() -> None:
    """A picture of 60 layers has 48 maps, the first and the last layer among them."""
    names = {index: f"layer {index}" for index in range(60)}
    layers = {index: LayerSimilarity(matrix(index)) for index in range(60)}
    figure = plot.draw(table(layers=layers, identity=identity(layer_names=names)))
    titles = [axis.get_title() for half in figure.subfigs for axis in half.axes]
    maps = [title for title in titles if title.startswith("layer ")]
    assert len(maps) == 48
    assert (maps[0], maps[-1]) == ("layer 0", "layer 59")
    assert titles[-2:] == ["Spread of similarities", "Experts that no other resembles"]


def test_layers_of_different_sizes_are_drawn() -> None:
    """Layers of 6 and 4 experts give the same pictures as layers of one size."""
    layers = {1: LayerSimilarity(matrix(1, E=6)), 3: LayerSimilarity(matrix(3, E=4))}
    figure = plot.draw(table(layers=layers, identity=identity(experts={1: 6, 3: 4})))
    assert figure.get_suptitle().startswith("tiny: similarity of 4 to 6 experts")


def test_alike_experts_are_drawn_side_by_side() -> None:
    """Three groups of experts in mixed order come out as three runs."""
    group = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    similarity = torch.where(group[:, None] == group, 0.9, 0.1).fill_diagonal_(1)
    similarity += torch.rand(9, 9) * 0.01
    runs = [key for key, _ in groupby(group[torch.tensor(plot.order(similarity))].tolist())]
    assert sorted(plot.order(similarity)) == list(range(9))
    assert len(runs) == 3


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text gives the install line."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"a plot needs matplotlib: .*pip install '\.\[plot\]'"):
        plot.draw(table())
