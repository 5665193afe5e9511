"""Tables with similarities that are not known: NaN, said wherever a table is looked at, never a number."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sere.cli.parser import build_parser
from sere.errors import TableError
from sere.identity import ModelIdentity
from sere.reroute import reroute
from sere.similarity import LayerSimilarity
from sere.table import SimilarityTable, compare, describe_unknown, import_reference_table, plot, verify_table
from tests.support.tables import identity, matrix, rewrite_as, table

NAN = math.nan


def lacking(*experts: int, seed: int = 1) -> Tensor:
    """A matrix of five experts, of some of which nothing is known."""
    values = matrix(seed)
    values[list(experts)] = NAN
    return values.fill_diagonal_(1.0)


def projected(first: Tensor, second: Tensor, **changes: Any) -> SimilarityTable:
    """A table of the directed metric, of two layers."""
    layers = {1: LayerSimilarity(first, torch.ones(5, 5)), 3: LayerSimilarity(second, torch.ones(5, 5))}
    return table(layers=layers, metric="projection", metric_parameters={}, **changes)


def show(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``sere table show`` prints."""
    assert sere("show", path, *words) == 0
    return capsys.readouterr().out


def sere(*words: object) -> int:
    """Run ``sere table ...``."""
    args = build_parser().parse_args(["table", *map(str, words)])
    return int(args.run(args))


def save_as_version_1(made: SimilarityTable, path: Path) -> None:
    """Save a table as one that said 0 for what is not known, with the identity that files then held."""
    old = {"name": "tiny", "digest": "ab" * 32, "E": 5, "K": 2}
    old["layer_names"] = {str(index): name for index, name in identity().layer_names.items()}
    layers = {
        i: LayerSimilarity(one.similarity.nan_to_num(nan=0), one.scale) for i, one in made.layers.items()
    }
    replace(made, layers=layers, identity=ModelIdentity.from_mapping(old)).save(path)
    rewrite_as(path, 1)


def test_unknown_similarities_are_saved_and_loaded(tmp_path: Path) -> None:
    """NaN stays NaN, bit for bit, and the fingerprint with it."""
    made = projected(lacking(0, 4), matrix(3))
    made.save(tmp_path / "t")
    loaded = SimilarityTable.load(tmp_path / "t")
    for index in (1, 3):
        a, b = made.layers[index].similarity, loaded.layers[index].similarity
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
    assert loaded.fingerprint == made.fingerprint
    assert loaded.layers[1].unknown == (0, 4)
    assert loaded.layers[3].unknown == ()


def test_an_expert_that_one_other_is_known_to_resemble_is_known() -> None:
    """Only a row without any known similarity to another counts; a single expert has no other."""
    values = lacking(0)
    values[0, 3] = 0.0
    assert LayerSimilarity(values).unknown == ()
    assert LayerSimilarity(torch.ones(1, 1)).unknown == ()


def test_unknown_experts_are_critical_at_every_threshold() -> None:
    """Also at 0, where every other expert has a substitute."""
    made = projected(lacking(0, 4), matrix(3))
    assert made.critical_experts(1, 0.0) == (0, 4)
    assert made.critical_experts(3, 0.0) == ()
    assert made.critical_experts(1, 1.1) == (0, 1, 2, 3, 4)


def test_the_sentence_counts_by_layer_and_in_total_and_says_why() -> None:
    """Long lists are cut; the reason is the metric's."""
    layers = {index: LayerSimilarity(lacking(*range(index % 3))) for index in range(30)}
    text = describe_unknown(layers, "projection")
    assert text is not None
    assert text.startswith(
        "30 of 150 experts have no known similarity to any other, so they are never replaced "
        "(1 of 5 in layer 1, 2 of 5 in layer 2, 1 of 5 in layer 4,"
    )
    assert "2 of 5 in layer 14 and 10 more): no calibration token was routed to them" in text
    cut = {1: layers[1]}
    assert str(describe_unknown(cut, "weights")).endswith("(1 of 5 in layer 1): their weights are all 0")
    assert str(describe_unknown(cut, "of somebody")).endswith("never replaced (1 of 5 in layer 1)")
    assert describe_unknown({3: layers[3]}, "projection") is None


def test_verify_says_it_and_passes(tmp_path: Path) -> None:
    """What is not known is no damage; symmetry and spread look at what is."""
    checks = {check.name: check for check in verify_table(projected(lacking(0, 4), matrix(3)))}
    assert all(check.passed for check in checks.values())
    assert checks["known"].detail.startswith("2 of 10 experts have no known similarity to any other")
    assert verify_table(table())[-1].detail == "similarities of every expert"


def test_verify_fails_where_nothing_is_known_or_only_one_way() -> None:
    """A layer without any known similarity re-routes nothing; a symmetric metric is known both ways."""
    nothing = {check.name: check for check in verify_table(projected(lacking(0, 1, 2, 3, 4), matrix(3)))}
    assert not nothing["spread"].passed
    assert "layer 1: no similarity is known, so nothing is replaced here" in nothing["spread"].detail
    layers = {1: LayerSimilarity(lacking(2)), 3: LayerSimilarity(matrix(3))}
    one_way = {check.name: check for check in verify_table(table(layers=layers))}
    assert "layer 1: some similarities are known in one direction only" in one_way["symmetry"].detail
    one_way_asked = {check.name: check for check in verify_table(projected(lacking(2), matrix(3)))}
    assert one_way_asked["symmetry"].passed


def test_show_says_it_by_layer_and_in_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Statistics are those of what is known; as JSON no value is NaN."""
    projected(lacking(0, 4), lacking(0, 1, 2, 3, 4)).save(tmp_path / "t")
    text = show(tmp_path / "t", capsys, "--threshold", "0")
    assert "not known:   7 of 10 experts have no known similarity to any other" in text
    assert text.splitlines()[-2].split()[-2:] == ["2", "2"]
    assert text.splitlines()[-1].split() == ["3", "5", *"-------", "5", "5"]
    value = json.loads(show(tmp_path / "t", capsys, "--json"))
    assert [layer["unknown"] for layer in value["layers"]] == [[0, 4], [0, 1, 2, 3, 4]]
    known = matrix(1)[1:4]
    known = known[known != 1]
    assert value["layers"][0]["min"] == pytest.approx(float(known.min()))
    assert value["layers"][0]["mean"] == pytest.approx(float(known.mean()))
    assert value["layers"][1]["mean"] is None


def test_a_layer_of_one_expert_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no other expert, so there is nothing to average and nothing unknown."""
    layers = dict.fromkeys((1, 3), LayerSimilarity(torch.ones(1, 1)))
    table(layers=layers, identity=identity(E=1, K=1)).save(tmp_path / "t")
    text = show(tmp_path / "t", capsys)
    assert text.splitlines()[-1].split() == ["3", "1", *"-------", "1", "0"]


def test_pictures_leave_what_is_not_known_out(tmp_path: Path) -> None:
    """All is drawn without a warning: gray in the maps, no share of the spread, critical from ρ = 0 on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.plot(projected(lacking(0, 4), lacking(0, 1, 2, 3, 4)), tmp_path / "t.png")
    figure = plot.draw(projected(lacking(0, 4), matrix(3)))
    critical = figure.subfigs[1].axes[1]
    shares = [line.get_ydata()[0] for line in critical.lines if len(line.get_ydata())]
    assert shares[:2] == [40.0, 0.0]
    assert sorted(plot.order(lacking(0, 1))) == [0, 1, 2, 3, 4]


def test_tables_that_know_the_same_are_equal() -> None:
    """NaN equals NaN; a table that knows more differs, by as many similarities."""
    some = projected(lacking(0), matrix(3))
    assert compare(some, projected(lacking(0), matrix(3))).equal
    result = compare(some, projected(lacking(0, 4), matrix(3)))
    assert not result.equal
    first = result.layers[0]
    assert (first.known_in_one, first.max_difference, first.mean_difference) == (4, 0, 0)
    assert first.choices_changed == pytest.approx(1 / 5)


@pytest.mark.parametrize("metric", ["projection", "cka", "weights"])
def test_old_tables_with_rows_of_0_are_read_as_not_known(tmp_path: Path, metric: str) -> None:
    """Version 1 could not say it: expert 2's zeros become NaN, and at ρ = 0 it is no longer replaced."""
    values = matrix(1)
    values[2] = 0
    if metric != "projection":
        values[:, 2] = 0
    values.fill_diagonal_(1)
    values[0, 1] = values[1, 0] = 0.0
    layers = {1: LayerSimilarity(values, torch.full((5, 5), 2.0)), 3: LayerSimilarity(matrix(3), matrix(3))}
    made = table(layers=layers, metric=metric, metric_parameters={})
    made.save(tmp_path / "t")
    assert SimilarityTable.load(tmp_path / "t").layers[1].unknown == ()
    save_as_version_1(made, tmp_path / "t")
    loaded = SimilarityTable.load(tmp_path / "t").layers[1]
    assert loaded.unknown == (2,)
    expected = values.clone()
    expected[2] = NAN
    if metric != "projection":
        expected[:, 2] = NAN
    torch.testing.assert_close(loaded.similarity, expected.fill_diagonal_(1), rtol=0, atol=0, equal_nan=True)
    assert loaded.scale is not None
    assert loaded.scale[2, [0, 1, 3, 4]].tolist() == [1, 1, 1, 1]
    ids, weights = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0.6, 0.4]] * 2)
    assert reroute(ids, weights, loaded, active_experts=0).ids.tolist() == ids.tolist()
    assert reroute(ids, weights, made.layers[1], active_experts=0).ids.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("metric", ["frobenius", "cosine"])
def test_old_zeros_that_were_measured_stay(tmp_path: Path, metric: str) -> None:
    """Where 0 is a similarity, the farthest or the opposite, it is none that is not known."""
    values = matrix(1)
    values[2], values[:, 2] = 0, 0
    layers = {1: LayerSimilarity(values.fill_diagonal_(1)), 3: LayerSimilarity(matrix(3))}
    save_as_version_1(table(layers=layers, metric=metric, metric_parameters={}), tmp_path / "t")
    assert torch.equal(SimilarityTable.load(tmp_path / "t").layers[1].similarity, values)


def test_an_old_table_that_is_saved_again_keeps_what_is_not_known(tmp_path: Path) -> None:
    """Read, saved and read once more, it says the same."""
    save_as_version_1(projected(lacking(0, 4), matrix(3)), tmp_path / "old")
    first = SimilarityTable.load(tmp_path / "old")
    first.save(tmp_path / "again")
    again = SimilarityTable.load(tmp_path / "again")
    assert again.fingerprint == first.fingerprint
    assert again.layers[1].unknown == first.layers[1].unknown == (0, 4)


def test_two_experts_at_the_farthest_are_no_missing_similarity(tmp_path: Path) -> None:
    """Of two experts each is the other's farthest: 0 by the definition of frobenius."""
    layers = dict.fromkeys((1, 3), LayerSimilarity(torch.eye(2)))
    table(layers=layers, identity=identity(E=2), metric="frobenius").save(tmp_path / "t")
    assert SimilarityTable.load(tmp_path / "t").layers[1].unknown == ()


def test_nan_in_a_reference_table_is_not_known(tmp_path: Path) -> None:
    """An expert of nothing but NaN is taken so, with a note; the others keep their bits."""
    values = matrix(1)
    values[2], values[:, 2] = NAN, NAN
    torch.save({1: values, 3: matrix(3).bfloat16()}, tmp_path / "similarity_matrices.pt")
    imported = import_reference_table(tmp_path / "similarity_matrices.pt", identity())
    assert imported.layers[1].unknown == (2,)
    assert imported.layers[1].similarity[2, 2] == 1
    assert torch.equal(imported.layers[1].similarity[0, [0, 1, 3, 4]], values[0, [0, 1, 3, 4]])
    assert "8 similarities are NaN in the file; they count as not known and are never used" in str(
        imported.provenance["notes"]
    )


def test_a_reference_layer_of_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    """Something overflowed when it was made: there is nothing to re-route by."""
    torch.save({1: torch.full((5, 5), NAN), 3: matrix(3)}, tmp_path / "similarity_matrices.pt")
    with pytest.raises(TableError, match="layer 1: expected similarities, got NaN for every pair of experts"):
        import_reference_table(tmp_path / "similarity_matrices.pt", identity())
