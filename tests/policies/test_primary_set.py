"""Controls that leave the same experts as SERE: the table's tiers mean the same to all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.errors import ConfigError
from sere.policies import LayerShape
from sere.policies.spec import parse_spec
from sere.reroute import TokenBatch
from sere.table.tiers import Tier
from tests.support.policies import CPU, counted, table_of_layer

TIERS = {
    "balanced": Tier("balanced", active_experts=((1, 3), (4, 6)), layers={}, evidence={}),
    "fast": Tier("fast", active_experts=4, layers={0: 3}, evidence={}),
}
TABLE = table_of_layer(8).with_tiers(TIERS)


def experts_after(text: str, rows: int) -> tuple[int, int]:
    """How many experts a step of so many rows reads, before and after the rule."""
    logits = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))[:rows]
    # All rows want the same expert most: P would be one expert.
    logits[:, 2] = 9.0
    weights, ids = logits.softmax(1).topk(4, dim=1)
    bound = parse_spec(text).build(TABLE).bind(LayerShape(0, 8, 4), CPU)
    bound(TokenBatch(ids, weights))
    seen = counted(bound)
    return seen["distinct_before"], seen["distinct_after"]


@pytest.mark.parametrize("rows", [1, 4, 6])
@pytest.mark.parametrize(
    "options",
    ["", ":tier=fast", ":tier=balanced", ":active_experts=2", ":active_experts=0", ":active_experts=0.5"],
)
def test_a_dropped_slot_leaves_the_experts_that_sere_leaves(options: str, rows: int) -> None:
    """With the same text after the name, at threshold 0; random ones are among them."""
    sere = experts_after(f"sere{options}", rows)
    assert experts_after(f"drop{options}", rows) == sere
    assert experts_after(f"random{options}", rows)[1] <= sere[1]


@pytest.mark.parametrize(
    ("text", "rows", "after"),
    [("drop", 1, 3), ("drop", 6, 6), ("drop:tier=fast", 6, 3), ("drop:active_experts=5", 6, 5)],
    ids=["one row", "six rows", "the layer's own", "given"],
)
def test_a_tier_is_what_the_table_says(text: str, rows: int, after: int) -> None:
    """By the rows of the step, and by layer; what is given goes before the tier."""
    assert experts_after(text, rows)[1] == after


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("drop", {"active_experts": [[1, 3], [4, 6]], "tier": "balanced", "layers": {}}),
        ("random:tier=fast", {"active_experts": 4, "layers": {"0": {"active_experts": 3}}}),
        ("drop:active_experts=5", {"active_experts": 5, "tier": None}),
    ],
)
def test_records_have_the_numbers_of_a_tier(text: str, found: dict[str, Any]) -> None:
    """Not its name alone."""
    described = parse_spec(text).build(TABLE).describe()
    assert {name: described[name] for name in found} == found


def test_a_tier_without_a_table_is_refused() -> None:
    """There is nothing that says what it means; so is one that the table lacks."""
    policy = parse_spec("drop:tier=fast").build()
    with pytest.raises(
        ConfigError, match="tier: policy 'drop' has no table that would say what tier 'fast' is"
    ):
        policy.bind(LayerShape(0, 8, 4), CPU)
    with pytest.raises(ConfigError, match="the table has no tier 'quick'"):
        parse_spec("drop:tier=quick").build(TABLE)
