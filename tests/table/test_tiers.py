"""Tiers: what a table recommends, and what settings become of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableError
from sere.table import Tier
from tests.support.tables import table, tiers


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_a_tier_goes_through_json(name: str) -> None:
    """Points, shares, layers and evidence come back equal."""
    one = tiers()[name]
    assert Tier.from_mapping(name, json.loads(json.dumps(one.to_mapping()))) == one


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": ""}, "tier: expected a name of letters, digits, dots, '-' and '_', such as 'fast', got ''"),
        ({"name": "a,b"}, "such as 'fast', got 'a,b'"),
        ({"active_experts": 0.0}, "tier 'mine': active_experts: expected a number of experts"),
        ({"select_top_k": 0}, "tier 'mine': select_top_k: expected an integer of at least 1, got 0"),
        ({"threshold": -1}, "tier 'mine': threshold: expected a number of at least 0"),
        ({"layers": [3]}, "tier 'mine': layers: expected {layer index: settings}, got [3]"),
        ({"layers": {"x": 3}}, "tier 'mine': layers: expected {layer index: settings}, got the key 'x'"),
        ({"layers": {1: "all"}}, "tier 'mine': layers: layer 1: active_experts: expected a number of"),
        ({"evidence": 3}, "tier 'mine': evidence: expected names and values, got 3"),
        ({"evidence": {"loss": object()}}, "tier 'mine': evidence: expected values that JSON can hold"),
        ({"evidence": {"loss": float("nan")}}, "tier 'mine': evidence: expected values that JSON can hold"),
    ],
    ids=["empty", "comma", "M", "S", "rho", "layers", "index", "layer's M", "evidence", "object", "nan"],
)
def test_a_tier_that_cannot_be_is_refused(changes: dict[str, Any], text: str) -> None:
    """The text names the tier and the value."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        Tier(**({"name": "mine", "active_experts": 3} | changes))


def test_tiers_belong_to_the_tables_layers_and_names() -> None:
    """A layer that the table lacks, or a tier under another name, is refused."""
    with pytest.raises(TableError, match=re.escape("tier 'fast': names layers [2, 9], but the table has [1")):
        table().with_tiers({"fast": Tier("fast", 3, {9: 3, 2: 3, 1: 3})})
    with pytest.raises(TableError, match="tier 'slow': expected the tier of this name, got 'fast'"):
        table().with_tiers({"slow": Tier("fast", 3)})


def test_with_tiers_is_the_same_table() -> None:
    """The tiers are new, the fingerprint is not, and the old table has none."""
    plain = table()
    made = plain.with_tiers(tiers())
    assert made.tiers == tiers()
    assert dict(plain.tiers) == {}
    assert made.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"tier": "balanced", "active_experts": ((1, 2), (8, 4)), "layers": {3: {"active_experts": 5}}}),
        (
            {"tier": "fast"},
            {"tier": "fast", "active_experts": 0.5, "select_top_k": 2, "threshold": 0.25},
        ),
        (
            {"tier": "fast", "select_top_k": 3, "threshold": 0.5},
            {"tier": "fast", "active_experts": 0.5, "select_top_k": 3, "threshold": 0.5},
        ),
        (
            {"layers": {1: {"select_top_k": 2}, 3: {"active_experts": 1}}},
            {
                "tier": "balanced",
                "active_experts": ((1, 2), (8, 4)),
                "layers": {1: {"select_top_k": 2}, 3: {"active_experts": 1}},
            },
        ),
        (
            {"layers": {3: {"select_top_k": 2}}},
            {
                "tier": "balanced",
                "active_experts": ((1, 2), (8, 4)),
                "layers": {3: {"active_experts": 5, "select_top_k": 2}},
            },
        ),
        ({"active_experts": 3}, {"active_experts": 3}),
        ({"preset": "paper", "select_top_k": 2}, {"preset": "paper", "select_top_k": 2}),
    ],
    ids=["none", "fast", "own S and rho", "own layer", "layer's own S", "own M", "paper"],
)
def test_a_tier_fills_in_what_is_left_open(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Without a tier "auto" means balanced; what a user set stays; M and the published method are settled."""
    made = table(tiers=tiers())
    settled = made.settings(RerouteConfig(**given))
    assert settled == RerouteConfig(**expected)
    assert made.settings(settled) == settled


def test_a_tier_has_any_setting_by_layer() -> None:
    """A layer's S, ρ and τ are the tier's unless the user gave that setting; a plain number is M."""
    own = {1: {"select_top_k": 3, "threshold": 0.5, "min_gain": 0.25}, 3: 4}
    tier = Tier("mine", 6, own, select_top_k=2)
    assert tier.layers == {1: own[1], 3: {"active_experts": 4}}
    assert Tier.from_mapping("mine", json.loads(json.dumps(tier.to_mapping()))) == tier
    one = tier.for_layer(1)
    assert (one.select_top_k, one.threshold, one.min_gain, one.active_experts) == (3, 0.5, 0.25, 6)
    assert tier.for_layer(2).select_top_k == 2
    settled = tier.settings(RerouteConfig())
    assert settled == RerouteConfig(tier="mine", active_experts=6, select_top_k=2, layers=dict(tier.layers))
    assert tier.settings(settled) == settled
    given = tier.settings(RerouteConfig(select_top_k=4, active_experts=9, use_scale=False))
    assert (given.select_top_k, given.active_experts) == (4, 9)
    assert given.layers == {1: {"threshold": 0.5}}


def test_a_table_without_gains() -> None:
    """Only τ of the tiers is gone; one that the user gives stays, in a layer, too."""
    made = table(
        tiers={"balanced": Tier("balanced", 6, {1: {"min_gain": 0.25, "threshold": 0.5}}, min_gain=0.01)}
    )
    without = made.without_gains()
    assert without.fingerprint == made.fingerprint
    settled = without.settings(RerouteConfig())
    assert settled == RerouteConfig(tier="balanced", active_experts=6, layers={1: {"threshold": 0.5}})
    assert made.settings(RerouteConfig()).min_gain == 0.01
    given = RerouteConfig(min_gain=0.02, layers={1: {"min_gain": 0.03}})
    own = without.settings(given)
    assert (own.min_gain, own.for_layer(1).min_gain) == (0.02, 0.03)


def test_a_table_without_tiers_changes_nothing() -> None:
    """Nor does one without ``balanced``, as long as no tier is named."""
    config = RerouteConfig()
    assert table().settings(config) is config
    assert table(tiers={"fast": tiers()["fast"]}).settings(config) is config


def test_a_tier_that_the_table_lacks_is_named_with_those_it_has() -> None:
    """Or with the command that makes some."""
    config = RerouteConfig(tier="quick")
    with pytest.raises(ConfigError, match="tier: the table has no tier 'quick'; it has balanced, fast"):
        table(tiers=tiers()).settings(config)
    with pytest.raises(ConfigError, match="no tier 'quick'; it has none; sere tune makes them"):
        replace(table(), tiers={}).settings(config)
