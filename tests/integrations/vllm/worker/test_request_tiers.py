"""Tiers in a worker: the engine's own, and those that requests ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm.engine_stats import EngineStats, merge_answers
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start.tables import allowed_of_requests
from sere.integrations.vllm.tiers import PROTECTED
from sere.integrations.vllm.worker.start_log import describe
from sere.table import SimilarityTable, Tier
from tests.support.vllm.standins import (
    NAMES,
    CPUUnquantizedExperts,
    SmallEngine,
    change,
    prepared,
)

# Of 16 experts the six rows of a step read 15, and six are some row's heaviest.
M = {"fast": 6, "balanced": 8, "safe": 12}


@pytest.fixture
def table(any_table: SimilarityTable) -> SimilarityTable:
    tiers = {name: Tier(name, most) for name, most in M.items()}
    tiers["uneven"] = Tier("uneven", 7, {1: 13})
    return any_table.with_tiers(tiers)


def engine(table: SimilarityTable, **settings: Any) -> SmallEngine:
    return SmallEngine(
        prepared(
            table, {}, torch.nn.Module, kernel=settings.pop("kernel", CPUUnquantizedExperts()), **settings
        )
    )


def decoded(running: SmallEngine, *, steps: int = 2) -> EngineStats:
    """Decode all six requests and return what was counted of that alone."""
    running.state.read(reset=True)
    running.decode(*NAMES, steps=steps)
    return merge_answers([running.state.read(reset=True)])


def experts(stats: EngineStats) -> list[float]:
    return [layer.distinct_after for layer in stats.layers]


def test_the_defaults_are_the_table_s_balanced_tier(table: SimilarityTable) -> None:
    """Without any setting M is that of the tier "balanced", and log and statistics say so."""
    running = engine(table)
    running.prompts(*NAMES)
    stats = decoded(running)
    assert experts(stats) == [8, 8]
    assert stats.settings["tier"] == "balanced"
    assert "tier balanced, S=1, rho=0, M=8, factors off" in describe(running.state)
    assert stats.request_tiers == tuple(table.tiers)


def test_without_tiers_the_formula_holds(any_table: SimilarityTable) -> None:
    """Without tiers M grows with the rows, as the formula says, and the log says at which rows."""
    running = engine(any_table)
    running.prompts(*NAMES)
    assert experts(decoded(running)) == [12, 12]
    assert "no tier, S=1, rho=0, M=4, 13, 16, 16 at 1, 8, 32, 128 rows" in describe(running.state)


@pytest.mark.parametrize(
    ("asked", "counts", "steps"),
    [
        (["fast"] * 6, [6, 6], {"fast": 2}),
        (["safe", *["fast"] * 5], [12, 12], {"fast": 2, "safe": 2}),
        (["fast", *[None] * 5], [8, 8], {"fast": 2}),
        ([{"tier": "uneven"}, *["fast"] * 5], [7, 13], {"fast": 2, "uneven": 2}),
        # Six of the others, and the four of the request that is off: none of these is among the six.
        (["off", *["fast"] * 5], [10, 10], {"fast": 2}),
        ([{"tier": "fast", "select_top_k": 2}] * 6, [9, 9], {"fast": 2}),
    ],
    ids=["one tier", "the most careful", "the engine's among them", "by layer", "off", "own S"],
)
def test_steps_have_the_most_careful_tier_of_their_requests(
    table: SimilarityTable, asked: list[Any], counts: list[int], steps: dict[str, int]
) -> None:
    """M of a step is the largest of what its decoding requests ask for; "off" asks for nothing."""
    running = engine(table)
    for name, tier in zip(NAMES, asked, strict=True):
        running.prompts(name, tier=tier)
    stats = decoded(running)
    assert experts(stats) == counts
    assert stats.steps_by_tier == steps


def test_tiers_come_and_go_with_their_requests(table: SimilarityTable) -> None:
    """A step without the request that asked for a tier has the engine's M again."""
    running = engine(table)
    running.prompts(*NAMES[1:])
    running.prompts(NAMES[0], tier="safe")
    assert experts(decoded(running)) == [12, 12]
    running.state.read(reset=True)
    running.decode(*NAMES[1:])
    assert experts(merge_answers([running.state.report()])) == [8, 8]


def test_unknown_tiers_of_a_request_protect_it(table: SimilarityTable) -> None:
    """The front end refuses them; in the worker such a request keeps its experts, and others go on."""
    running = engine(table)
    running.prompts(*NAMES, tier="nonsense")
    stats = decoded(running)
    assert (stats.steps_rerouted, stats.skipped["protected"]) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "counts", "tier"),
    [
        ({"tier": "fast"}, [6, 6], "fast"),
        ({"tier": "uneven"}, [7, 13], "uneven"),
        ({"active_experts": 10}, [10, 10], None),
        ({"active_experts": 0.5}, [8, 8], None),
        ({"active_experts": [[1, 4], [6, 9], [16, 16]]}, [9, 9], None),
        ({"active_experts": {"1": 14}}, [8, 14], "balanced"),
        ({"layers": {1: {"select_top_k": 2, "active_experts": 0}}}, [8, 9], "balanced"),
        ({"select_top_k": 2, "active_experts": 0}, [9, 9], None),
        ({"active_experts": 0, "keep": {0: [1, 2, 3]}}, [9, 6], None),
    ],
    ids=["tier", "tier by layer", "number", "share", "points", "M by layer", "S by layer", "S", "keep"],
)
def test_what_changes_while_serving(
    table: SimilarityTable, changes: dict[str, Any], counts: list[int], tier: str | None
) -> None:
    """S, M and the tier hold from the next step on, in place, and the statistics show them by layer."""
    running = engine(table)
    addresses = [layer.router.tensors()["limits"].data_ptr() for layer in running.state.layers.values()]  # type: ignore[union-attr]
    running.prompts(*NAMES)
    assert experts(decoded(running)) == [8, 8]
    change(running.state, changes)
    stats = decoded(running)
    assert experts(stats) == counts
    assert stats.settings["tier"] == tier
    if "keep" not in changes:
        for index, count in enumerate(counts):
            own = stats.layer_settings[index]
            assert max(dict(own["active_experts"])[4], 9 if own["select_top_k"] == 2 else 6) <= count
    again = [layer.router.tensors()["limits"].data_ptr() for layer in running.state.layers.values()]  # type: ignore[union-attr]
    assert again == addresses
    change(running.state, {"tier": "balanced", "layers": {}, "keep": {}, "select_top_k": 1})
    assert experts(decoded(running)) == [8, 8]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tier": "slow"}, "tier: the table has no tier 'slow'; it has fast, balanced, safe, uneven"),
        ({"active_experts": {"5": 3}}, "layers: layer 5 has no similarities; the table has the layers 0, 1"),
        ({"active_experts": {"0": -1}}, "active_experts: expected "),
        ({"active_experts": -1}, "active_experts: expected "),
        ({"layers": {0: {"cap": True}}}, "layers: unknown setting 'cap'"),
        ({"layers": 3, "active_experts": {0: 3}}, "layers: expected {layer index: settings}, got 3"),
        ({"cap": True}, "'cap' cannot be changed while the engine runs"),
        ({"count_only": 1}, "count_only: expected true or false, got 1"),
    ],
    ids=["tier", "no such layer", "M of a layer", "M", "of a layer", "layers", "cap", "count_only"],
)
def test_refused_changes_change_nothing(table: SimilarityTable, changes: dict[str, Any], text: str) -> None:
    """A change that is refused says why, and no part of it holds."""
    running = engine(table)
    running.prompts(*NAMES)
    before = running.state.report()
    with pytest.raises(ConfigError) as refused:
        change(running.state, {"threshold": 0.9} | changes)
    assert text in str(refused.value)
    assert running.state.report() == before
    assert experts(decoded(running)) == [8, 8]


def test_a_tier_and_a_number_replace_each_other(table: SimilarityTable) -> None:
    """What was given last holds: a tier takes the place of every M, and an M that of the tier."""
    running = engine(table)
    change(running.state, {"active_experts": 10, "layers": {0: {"active_experts": 3, "select_top_k": 2}}})
    assert change(running.state, {"tier": "fast"})["tier"] == "fast"
    assert running.state.config.layers == {0: {"select_top_k": 2}}
    assert change(running.state, {"active_experts": 10})["tier"] is None
    assert running.state.config.active_experts == 10


def test_an_engine_that_only_counts(table: SimilarityTable) -> None:
    """Switched to counting, no slot changes, whatever requests ask for, and the counters go on."""
    running = engine(table)
    running.prompts(*NAMES[:3], tier="fast")
    running.prompts(*NAMES[3:], tier=2)
    assert change(running.state, {"count_only": True})["count_only"]
    stats = decoded(running)
    assert experts(stats) == [15, 15]
    assert [layer.slots_rerouted for layer in stats.layers] == [0, 0]
    assert (stats.count_only, stats.steps_by_tier) == (True, {})
    change(running.state, {"count_only": False})
    assert experts(decoded(running)) == [8, 8]


def test_kernels_that_need_different_experts_get_at_least_k(
    table: SimilarityTable, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a row must not hold an expert twice, M is at least K in every layer, also in tiers."""
    running = engine(table.with_tiers({"fast": Tier("fast", 1)}), kernel=None, active_experts=1, merge="none")
    assert running.state.config.merge == "distinct"
    running.prompts("alone")
    running.prompts("other", tier="fast")
    for name in ("alone", "other"):
        running.state.read(reset=True)
        running.decode(name)
        assert experts(merge_answers([running.state.report()])) == [4, 4]
    own = merge_answers([running.state.report()]).layer_settings[0]
    assert dict(own["active_experts"])[1] == 4


def test_requests_may_be_kept_from_some_tiers(table: SimilarityTable) -> None:
    """``request_tiers`` says what requests may ask for; a name that the table lacks is refused."""
    running = engine(table, requests={"request_tiers": ("safe",)})
    running.prompts(*NAMES[:5], tier="safe")
    running.prompts(NAMES[5], tier="fast")
    assert decoded(running).steps_by_tier == {"safe": 2}
    with pytest.raises(
        ConfigError, match="request_tiers: the table has no tier 'slow', it has fast, balanced"
    ):
        engine(table, requests={"request_tiers": ("slow",)})


EVERYTHING = (["balanced", "fast", "safe", "uneven"], "off", (1, PROTECTED))


@pytest.mark.parametrize(
    ("requests", "tiers", "off", "slots"),
    [
        ({}, *EVERYTHING),
        ({"request_tiers": ["safe", "off"]}, ["safe"], "off", (1, 0)),
        ({"request_tiers": ["safe"], "request_select_top_k": [2, 4]}, ["safe"], "", (2, 4)),
        ({"request_select_top_k": [2, 4]}, *EVERYTHING[:2], (2, 4)),
        ({"request_select_top_k": []}, *EVERYTHING[:2], (1, 0)),
        ({"request_tiers": []}, [], "", (1, 0)),
        ({"allow_request_tiers": False}, [], "", (1, 0)),
        ({"allow_request_tiers": False, "request_tiers": ["safe"]}, [], "", (1, 0)),
    ],
    ids=["nothing said", "names", "names and S", "S", "no S", "no names", "nothing", "nothing at all"],
)  # fmt: skip
def test_what_an_operator_allows(
    table: SimilarityTable, requests: dict[str, Any], tiers: list[str], off: str, slots: tuple[int, int]
) -> None:
    """By default requests may ask for everything; where tiers are named, for these and no other S."""
    allowed = allowed_of_requests(table, PluginConfig(reroute=RerouteConfig(), **requests))
    assert allowed.tiers == tiers
    assert ("off" in allowed.names) == bool(off)
    assert (allowed.least, allowed.most) == slots


def test_engines_without_request_tiers(table: SimilarityTable) -> None:
    """Where a request may ask for nothing, one that does all the same changes no step of the others."""
    running = engine(table, requests={"allow_request_tiers": False})
    running.prompts(*NAMES[:5])
    running.prompts(NAMES[5], tier="off")
    assert experts(decoded(running)) == [8, 8]


@pytest.mark.parametrize(
    ("asked", "counts", "kinds"),
    [
        ([None] * 6, [0, 0], (0, 2)),
        (["exact"] * 6, [0, 0], (0, 2)),
        (["fast"] * 6, [6, 6], (2, 0)),
        (["fast", *[None] * 5], [0, 0], (0, 2)),
        (["partly"] * 6, [6, 15], (2, 0)),
    ],
    ids=["own", "the same", "a smaller S", "one of them", "in a layer"],
)
def test_a_tier_s_own_s_decides_whether_its_steps_are_left_alone(
    any_table: SimilarityTable, asked: list[Any], counts: list[int], kinds: tuple[int, int]
) -> None:
    """The engine's tier keeps all four slots; a request's tier may have an S of its own, by layer too."""
    tiers = {
        "exact": Tier("exact", 6, select_top_k=4),
        "fast": Tier("fast", 6),
        "partly": Tier("partly", 6, {1: {"select_top_k": 4}}),
    }
    running = engine(any_table.with_tiers(tiers), tier="exact")
    for name, tier in zip(NAMES, asked, strict=True):
        running.prompts(name, tier=tier)
    stats = decoded(running)
    assert (stats.steps_rerouted, stats.skipped["protected"]) == kinds
    assert experts(stats) == counts
