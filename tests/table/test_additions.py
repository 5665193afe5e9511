"""Tiers and routing sample on disk: what is written is read back; what is damaged is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sere.table import SimilarityTable
from tests.support.tables import refuses, refuses_header, rewrite, sample, saved, table, tiers


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"tiers": None}, "the header lacks tiers; calibrate again"),
        ({"tiers": "[]"}, "tiers: expected settings by tier name, got []"),
        ({"tiers": '{"fast": 3}'}, "tier 'fast': expected its settings with active_experts, got 3"),
        ({"tiers": '{"fast": {"active_experts": -1}}'}, "tier 'fast': active_experts: expected "),
        (
            {"tiers": '{"fast": {"active_experts": 3, "layer": {}}}'},
            "tier 'fast': unknown setting 'layer'; did you mean 'layers'?",
        ),
        ({"tiers": '{"a=b": {"active_experts": 3}}'}, "tier: expected a name of letters, digits, dots"),
        (
            {"tiers": '{"fast": {"active_experts": 3, "layers": {"2": 4}}}'},
            "tier 'fast': names layers [2], but the table has [1, 3]; tune again (sere tune)",
        ),
        ({"tiers": '{"fast": {"active_experts": 3}}'}, "its tiers or its routing sample were changed"),
    ],
)
def test_tiers_that_make_no_sense_are_refused(tmp_path: Path, metadata: Any, text: str) -> None:
    """The text names the file, the tier and the value."""
    refuses_header(tmp_path, metadata, text)


def test_tiers_and_routing_sample_are_saved(tmp_path: Path) -> None:
    """Both come back as they were, and neither changes the fingerprint."""
    before = table(tiers=tiers(), routing=sample())
    before.save(tmp_path / "t")
    after = SimilarityTable.load(tmp_path / "t")
    assert after.tiers == before.tiers
    assert before.routing is not None
    assert after.routing is not None
    expected, got = before.routing.to_tensors(), after.routing.to_tensors()
    assert list(expected) == list(got)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name
    assert after.fingerprint == table().fingerprint


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"routing.starts": None}, "routing sample: expected a tensor named routing.starts, got none"),
        ({"routing.1.score": torch.ones(2)}, "routing sample: unknown tensor 'routing.1.score'"),
        ({"routing.3.energy": None}, "expected ids, weights and energy of the same layers, got those of "),
        ({"routing.1.energy": torch.ones(6)}, "layer 1: expected E = 5 experts, got 6; calibrate again"),
        ({"routing.1.energy": -torch.ones(5)}, "layer 1: expected finite weights, and energies of at least"),
        ({"routing.1.ids": torch.ones(8, 2)}, "layer 1: ids: expected int16 of shape [8, K], got "),
        ({"routing.1.ids": torch.full((8, 2), 5).short()}, "ids: expected ids below E = 5 (negative ones"),
        ({"routing.1.weights": torch.ones(8, 3).half()}, "weights: expected float16 of shape [8, 2], got "),
        ({"routing.1.weights": torch.full((8, 2), torch.nan).half()}, "layer 1: expected finite weights"),
        ({"routing.starts": torch.tensor([0, 3, 3, 8]).int()}, "starts: expected int32 numbers that begin"),
        ({"routing.starts": torch.tensor([0, 8])}, "starts: expected int32 numbers that begin with 0"),
        ({"routing.starts": torch.tensor([0, 4097]).int()}, "expected at most 4096 tokens, got 4097"),
        ({"routing.1.weights": torch.ones(8, 2).half()}, "its tiers or its routing sample were changed"),
    ],
    ids=[
        "no starts", "unknown", "no energy", "other E", "energy", "dtype", "id", "shape", "nan", "empty text",
        "starts' dtype", "too many", "changed",
    ],
)  # fmt: skip
def test_a_routing_sample_that_makes_no_sense_is_refused(tmp_path: Path, tensors: Any, text: str) -> None:
    """What is damaged is named, also where every single value could be right."""
    path = saved(tmp_path, routing=sample())
    rewrite(path, tensors=tensors)
    with refuses(text) as caught:
        SimilarityTable.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_routing_sample_of_layers_that_the_table_lacks_is_refused(tmp_path: Path) -> None:
    """The text names both."""
    one = sample().to_tensors()
    path = saved(tmp_path, routing=sample())
    rewrite(path, tensors={name.replace("1", "2"): tensor for name, tensor in one.items() if "1" in name})
    with refuses("routing sample: names layers [2], but the table has [1, 3]; calibrate again"):
        SimilarityTable.load(path)
