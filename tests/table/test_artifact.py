"""A table keeps what it was given, knows its model and refuses what cannot be one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from sere.errors import InputError, TableError, TableMismatch
from sere.similarity import LayerSimilarity
from sere.table import fit, verify_table
from tests.support.tables import ARCHITECTURE, identity, matrix, table


def refuses(error: type[Exception], text: str) -> Any:
    """Expect exactly this text within the error."""
    return pytest.raises(error, match=re.escape(text))


def test_layers_come_in_order_by_decoder_layer_index() -> None:
    """However they were given, ``layers`` lists them in layer order, and nobody can change them."""
    layers = {3: LayerSimilarity(matrix(3)), 1: LayerSimilarity(matrix(1))}
    made = table(layers=layers)
    assert list(made.layers) == [1, 3]
    with pytest.raises(TypeError):
        made.layers[1] = layers[3]  # type: ignore[index]


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    """Layers, layer names and parameters may come in any order; provenance does not count."""
    plain = table()
    turned = table(
        layers=dict(sorted(plain.layers.items(), reverse=True)),
        identity=identity(layer_names=dict(sorted(identity().layer_names.items(), reverse=True))),
        metric_parameters=dict(sorted(plain.metric_parameters.items(), reverse=True)),
        provenance={},
    )
    assert turned.fingerprint == plain.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", plain.fingerprint)


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "cka_rbf"},
        {"metric_parameters": {"kernel": "rbf"}},
        {"calibration_tokens": 1},
        {"data_digest": ""},
        {"seed": 1},
        {"identity": identity(name="other")},
        {"scale": True},
        {"layers": {1: LayerSimilarity(matrix(3)), 3: LayerSimilarity(matrix(1))}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_fingerprint_depends_on_everything_else(changes: dict[str, Any]) -> None:
    """Two tables with one fingerprint are the same table."""
    assert table(**changes).fingerprint != table().fingerprint


def test_a_table_fits_its_model_under_another_name() -> None:
    """The name is for people; a copy under another path is the same model."""
    table().check(identity(name="elsewhere"))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            identity(architecture=ARCHITECTURE | {"hidden_size": 64}),
            "hidden_size: the table has 32, the model 64",
        ),
        (
            identity(architecture=ARCHITECTURE | {"model_type": None}),
            "model_type: the table has any_moe, the ",
        ),
        (identity(layer_names={1: "a", 2: "b"}), "MoE layers: the table has [1, 3], the model [1, 2]"),
        (identity(E=6), "experts of layer 1: the table has 5, the model 6; experts of layer 3: the table"),
        (identity(experts={1: 5, 3: 4}), "(E=4 to 5, K=2, 2 MoE layers"),
        (identity(experts={1: 5, 3: 4}), "): experts of layer 3: the table has 5, the model 4; calibrate"),
    ],
    ids=["hidden size", "model type", "layers", "E", "one layer's E, spread", "one layer's E"],
)
def test_another_model_is_refused_with_what_differs(other: Any, difference: str) -> None:
    """The text names the calibrated model, the one at hand, each value that differs, and what to do."""
    other = replace(other, name="big")
    with pytest.raises(TableMismatch) as caught:
        table().check(other)
    text = str(caught.value)
    assert text.startswith("the table was calibrated on 'tiny' (E=5, K=2, 2 MoE layers: layers 1 to 3, ")
    assert "but the model is 'big' (E=" in text
    assert difference in text
    assert text.endswith("calibrate this model (sere calibrate) or give its own table")


def sized(experts: dict[int, int], **changes: Any) -> Any:
    """Return a table whose layers have these numbers of experts."""
    layers = {index: LayerSimilarity(matrix(index, E=E)) for index, E in experts.items()}
    return table(layers=layers, identity=identity(experts=experts, **changes))


def test_layers_may_have_different_numbers_of_experts() -> None:
    """Each layer is checked against its own E; E and K of the whole are the largest."""
    made = sized({1: 6, 3: 4}, slots={1: 2, 3: 3})
    assert (made.num_experts, made.identity.top_k, made.layers[3].num_experts) == (6, 3, 4)
    assert repr(made).startswith("SimilarityTable('tiny', cka, L=2, E=4 to 6, K=2 to 3, fingerprint ")
    made.check(made.identity)
    with refuses(TableError, "layer 3: expected E = 4 experts as in 'tiny' (E=4 to 6, K=2"):
        table(layers={1: made.layers[1], 3: made.layers[1]}, identity=made.identity)
    assert all(check.passed for check in verify_table(made, made.identity))
    assert verify_table(made)[0].detail == "2 layers of 4 to 6 experts, fingerprint matches"


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("cka", "similarities do not depend on K, so the table fits"),
        (
            "projection",
            "measured on the tokens routed to each expert with K=2, so its similarities and scales",
        ),
    ],
)
def test_another_k_is_a_line_in_the_log(metric: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A model loaded with another K is the calibrated one: both numbers are named, once, not refused."""
    made = table(metric=metric, data_digest=metric)
    fit.warn_once.forget()
    for _ in range(2):
        made.check(identity(K=1))
        made.check(identity())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "was calibrated with K=2 routed slots per token, this model has K=1" in line
    assert text in line


def test_a_table_is_shown_in_a_line() -> None:
    """Model, metric, sizes and fingerprint of a table, E of a layer; no matrix."""
    made = table(scale=True)
    assert repr(made) == f"SimilarityTable('tiny', cka, L=2, E=5, K=2, fingerprint {made.fingerprint[:12]})"
    assert repr(made.layers[1]) == "LayerSimilarity(E=5, scale=True, sensitivity=False)"


def test_an_identity_matrix_is_refused() -> None:
    """A missing similarity that looks like one would map everything to the lowest primary expert."""
    layers = {1: LayerSimilarity(matrix(1)), 3: LayerSimilarity(torch.eye(5))}
    with refuses(
        TableError,
        "layer 3: expected similarities, got the identity matrix, which means that they are missing",
    ):
        table(layers=layers)


def test_a_single_row_of_zeros_is_no_identity() -> None:
    """An expert that was never routed has such a row under ``projection``."""
    similarity = matrix(1)
    similarity[2] = torch.eye(5)[2]
    assert table(layers={1: LayerSimilarity(similarity), 3: LayerSimilarity(matrix(3))}).num_experts == 5


def test_layers_of_another_size_or_index_are_refused() -> None:
    """All layers of the model, all with its E."""
    with refuses(TableError, "layer 3: expected E = 5 experts as in 'tiny'"):
        table(layers={1: LayerSimilarity(matrix(1)), 3: LayerSimilarity(matrix(3, E=4))})
    with refuses(TableError, "similarities exist for layers [1], but 'tiny'"):
        table(layers={1: LayerSimilarity(matrix(1))})
    with refuses(TableError, "similarities exist for layers [], but"):
        table(layers={}, identity=identity(layer_names={}))


def test_critical_experts_are_those_that_no_other_resembles() -> None:
    """An expert is critical where its best other expert is below ρ; at ρ exactly it can be replaced."""
    similarity = torch.eye(5)
    similarity[0, 1], similarity[1, 0], similarity[2, 4] = 0.5, 0.3, 0.7
    made = table(layers={1: LayerSimilarity(similarity), 3: LayerSimilarity(matrix(3))})
    assert made.critical_experts(1, 0.5) == (1, 3, 4)
    assert made.critical_experts(1, 0.3) == (3, 4)  # 0.3 is above float32's 0.3: compared in float32
    assert made.critical_experts(1, 0.0) == ()
    assert made.critical_experts(1, 1.1) == (0, 1, 2, 3, 4)
    with refuses(InputError, "layer: expected one of [1, 3], got 2"):
        made.critical_experts(2, 0.5)


def test_verify_finds_what_loading_cannot() -> None:
    """A symmetric metric with an asymmetric layer, and a layer without spread, fail by name."""
    lopsided = matrix(1)
    lopsided[0, 1] += 0.01
    flat = torch.full((5, 5), 0.5).fill_diagonal_(1)
    made = table(layers={1: LayerSimilarity(lopsided), 3: LayerSimilarity(flat)})
    checks = {c.name: c for c in verify_table(made)}
    assert not checks["symmetry"].passed
    assert checks["symmetry"].detail == "layer 1: differs from its transpose by 0.01; calibrate again"
    assert checks["spread"].detail == "layer 3: all similarities are 0.5, so none tells experts apart"
    assert all(check.passed for check in verify_table(table(), identity()))
    assert not verify_table(table(), identity(E=6))[-1].passed


def test_directed_metrics_need_no_symmetry() -> None:
    """``projection`` is directed by definition."""
    lopsided = matrix(1)
    lopsided[0, 1] += 0.01
    layers = {1: LayerSimilarity(lopsided), 3: LayerSimilarity(matrix(3))}
    assert all(check.passed for check in verify_table(table(layers=layers, metric="projection")))


def test_a_model_of_another_name_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The architecture is what is compared; another name is worth a line in the log, not an error."""
    made, other = table(), replace(table().identity, name="tuned-elsewhere")
    made.check(other)
    made.check(other)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'tiny'" in line
    assert "'tuned-elsewhere'" in line
