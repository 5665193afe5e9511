"""Why settings re-route nothing: one sentence per reason, with the layers it is about and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.policies import LayerShape
from sere.policies.idle import why_idle, why_no_substitute
from sere.similarity.layer import LayerSimilarity

SAME = [LayerShape(index, 16, 4) for index in range(3)]
MIXED = [LayerShape(0, 16, 4), LayerShape(1, 12, 2)]


@pytest.mark.parametrize(
    ("settings", "layers", "reasons"),
    [
        ({"select_top_k": 3, "active_experts": 15}, SAME, []),
        (
            {"select_top_k": 4},
            SAME,
            [
                "select_top_k=4 is not smaller than the model's top_k=4, so nothing will be re-routed; "
                "use a value from 1 to 3"
            ],
        ),
        (
            {"select_top_k": 2},
            MIXED,
            [
                "select_top_k=2 is not smaller than top_k=2 of layer 1, so nothing will be re-routed there; "
                "use select_top_k=1"
            ],
        ),
        (
            {"select_top_k": 1},
            [LayerShape(0, 16, 1)],
            [
                "select_top_k=1 is not smaller than the model's top_k=1, so nothing will be re-routed; "
                "a model with one expert per token cannot be re-routed"
            ],
        ),
        (
            {"select_top_k": 1, "active_experts": 16},
            MIXED,
            [
                "active_experts=16 disables re-routing: with 12 to 16 experts per layer every routed "
                "expert is primary. Use a smaller value"
            ],
        ),
        (
            {"select_top_k": 4, "active_experts": 12},
            MIXED,
            [
                "active_experts=12 disables re-routing in layer 1: with 12 experts per layer every routed "
                "expert is primary. Use a smaller value",
                "select_top_k=4 is not smaller than top_k=4 of layer 0, so nothing will be re-routed there; "
                "use a value from 1 to 3",
            ],
        ),
        (
            {"active_experts": {0: 16, 1: 1.0}},
            MIXED,
            [
                "active_experts=16 disables re-routing in layer 0: with 16 experts per layer every routed "
                "expert is primary. Use a smaller value",
                "active_experts=1.0 disables re-routing in layer 1: with 12 experts per layer every routed "
                "expert is primary. Use a smaller value",
            ],
        ),
        ({"active_experts": [[1, 4], [8, 16]]}, SAME, []),
        (
            {},
            [LayerShape(0, 4, 4)],
            [
                "active_experts=auto disables re-routing: with 4 experts per layer every routed expert is "
                "primary. Use a smaller value"
            ],
        ),
        (
            {"layers": {0: {"select_top_k": 4}}},
            SAME,
            [
                "select_top_k=4 is not smaller than top_k=4 of layer 0, so nothing will be re-routed there; "
                "use a value from 1 to 3"
            ],
        ),
    ],
    ids=[
        "none",
        "S of K",
        "S of one layer's K",
        "K of 1",
        "M of E",
        "each layer its own",
        "M by layer",
        "M by rows",
        "dense",
        "S by layer",
    ],
)
def test_reasons_name_setting_bound_and_remedy(
    settings: dict[str, Any], layers: list[LayerShape], reasons: list[str]
) -> None:
    """The whole text, because people read it."""
    assert why_idle(RerouteConfig.from_mapping(settings), layers) == reasons


def test_at_most_ten_layers_are_named() -> None:
    """A model of 94 layers does not fill the screen."""
    layers = [LayerShape(index, 16, 2) for index in range(12)] + [LayerShape(12, 16, 4)]
    (reason,) = why_idle(RerouteConfig(select_top_k=2), layers)
    assert "top_k=2 of layers 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., so nothing" in reason


def similarities(*values: float) -> dict[int, LayerSimilarity]:
    """Layers of two experts with these similarities to each other."""
    return {
        index: LayerSimilarity(torch.tensor([[1.0, value], [value, 1.0]]))
        for index, value in enumerate(values)
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"threshold": 0.3}, None),
        ({"threshold": 0.31}, "threshold=0.31 is above every similarity in the table (at most 0.300), so"),
        (
            {"threshold": 0.3, "layers": {0: {"threshold": 0.4}}},
            "threshold=0.3 to 0.4 is above every similarity of",
        ),
        ({"threshold": 0.4, "layers": {0: {"threshold": 0.3}}}, None),
        ({"keep": {0: [0, 1]}}, None),
        ({"keep": {0: [0, 1], 1: [0, 1]}}, "keep names every expert of every layer, so nothing will be"),
    ],
    ids=["at the largest", "above", "above in its layer", "not in its layer", "one layer", "all layers"],
)
def test_no_substitute_is_told_from_table_and_settings(
    settings: dict[str, object], found: str | None
) -> None:
    """The threshold is compared in float32; an unknown similarity is no substitute."""
    config = RerouteConfig.from_mapping({"select_top_k": 1} | settings)
    reasons = why_no_substitute(config, similarities(0.3, float("nan")))
    assert len(reasons) == (found is not None)
    assert found is None or reasons[0].startswith(found)
