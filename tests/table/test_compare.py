"""Two tables can be compared, with warnings if comparing means little."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sere.errors import TableMismatch
from sere.similarity import LayerSimilarity
from sere.table import compare
from tests.support.tables import identity, matrix, sample, table, tiers


def refuses(error: type[Exception], text: str) -> Any:
    """Expect exactly this text within the error."""
    return pytest.raises(error, match=re.escape(text))


def test_a_table_equals_itself() -> None:
    """No difference, no warning."""
    result = compare(table(scale=True), table(scale=True))
    assert result.equal
    assert not result.warnings
    assert [(d.max_difference, d.mean_difference, d.choices_changed) for d in result.layers] == [
        (0, 0, 0)
    ] * 2


def test_differences_are_measured_by_layer() -> None:
    """Largest, mean over pairs of different experts, and the share of experts with another best one."""
    changed = matrix(3)
    least = int(changed[0].argmin())
    changed[0, least] = 1.0
    other = table(layers={1: LayerSimilarity(matrix(1)), 3: LayerSimilarity(changed)})
    result = compare(table(), other)
    delta = 1.0 - float(matrix(3)[0, least])
    assert not result.equal
    assert result.layers[0].max_difference == 0
    assert result.layers[1].max_difference == pytest.approx(delta)
    assert result.layers[1].mean_difference == pytest.approx(delta / 20)
    assert result.layers[1].choices_changed == pytest.approx(1 / 5)


def test_scales_count_as_a_difference() -> None:
    """Equal similarities with and without scale are two tables."""
    assert not compare(table(), table(scale=True)).equal


def test_layers_of_different_sizes_are_compared() -> None:
    """Each layer is compared with its own number of experts."""
    layers = {1: LayerSimilarity(matrix(1, E=6)), 3: LayerSimilarity(matrix(3, E=4))}
    uneven = table(layers=layers, identity=identity(experts={1: 6, 3: 4}))
    assert compare(uneven, uneven).equal


@pytest.mark.parametrize(
    ("E", "indices", "text"), [(4, (1, 3), "E=4, layers [1, 3]"), (5, (0, 2), "E=5, layers [0, 2]")]
)
def test_tables_with_nothing_in_common_are_refused(E: int, indices: tuple[int, ...], text: str) -> None:
    """Where E differs or no layer is in both there is no difference to show, and both are named."""
    names = dict.fromkeys(indices, "x")
    layers = {index: LayerSimilarity(matrix(index, E)) for index in indices}
    other = table(layers=layers, identity=identity(name="big", E=E, layer_names=names))
    with refuses(TableMismatch, f"got 'tiny' (E=5, layers [1, 3]) and 'big' ({text})"):
        compare(table(), other)


def test_incomparable_tables_are_compared_with_warnings() -> None:
    """Other model, layers, metric or data: each is said, and what can be compared is."""
    other = table(
        layers={1: LayerSimilarity(matrix(1))},
        identity=identity(name="big", architecture={}, layer_names={1: "x"}),
        metric="cosine",
        metric_parameters={},
        data_digest="",
        calibration_tokens=7,
    )
    result = compare(table(), other)
    assert [warning.split(":")[0] for warning in result.warnings] == [
        "different models",
        "different layers",
        "different metrics",
        "different calibration data",
    ]
    assert result.warnings[3].endswith("digest cdcdcdcdcdcd and 7 tokens, digest none")
    assert [difference.layer for difference in result.layers] == [1]
    assert not result.equal
    fewer = compare(table(), table(identity=identity(K=1)))
    assert fewer.warnings == ("different numbers of routed slots per token: K=2 and K=1",)
    narrow = compare(table(), table(metric_parameters={"kernel": "rbf", "window": 64}))
    assert narrow.equal
    assert narrow.warnings[0].startswith("different cka parameters: {'kernel': 'rbf', 'window': 128")


def test_tiers_and_routing_sample_are_not_compared() -> None:
    """What is recommended may differ; the similarities are the same, without a warning."""
    result = compare(table(), table(tiers=tiers(), routing=sample()))
    assert result.equal
    assert result.warnings == ()
