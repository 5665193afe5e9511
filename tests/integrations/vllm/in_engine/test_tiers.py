"""Tiers of the table in a real engine: the defaults, another one while serving, and those of requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.defaults import TABLE
from sere.errors import ConfigError
from sere.integrations.vllm import configure, read_stats
from sere.integrations.vllm.engine_stats import EngineStats
from sere.table import SimilarityTable, Tier
from tests.support.vllm.engines import engine, generate, prompts, sampling
from tests.support.vllm.models import save_model, table_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

# M of a step of eight rows, whose routers choose more experts than any of these, by layer.
EXPERTS = {"fast": [8, 8], "balanced": [9, 11], "safe": [12, 12]}


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "compiled"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine without any setting, whose table lies beside the model."""
    path = save_model(tmp_path_factory.mktemp("tiers"))
    tiers = {
        "fast": Tier("fast", ((1, 4), (8, 8))),
        "balanced": Tier("balanced", ((1, 5), (8, 9)), {1: 11}),
        "safe": Tier("safe", 12),
    }
    SimilarityTable.load(table_of(path)).with_tiers(tiers).save(path / TABLE)
    with engine(path, additional_config={"sere": {}}, enforce_eager=request.param) as llm:
        yield llm


@pytest.fixture
def llm(shared: Any) -> Any:
    configure(shared, tier=None, active_experts="auto", layers={})
    read_stats(shared, reset=True)
    return shared


def decoded(llm: Any, tiers: list[Any] | None = None) -> EngineStats:
    """Decode eight requests together and return what was counted."""
    asked = [{} if tier is None else {"extra_args": {"sere": tier}} for tier in tiers or [None] * 8]
    llm.generate(prompts(), [sampling(**extra) for extra in asked], use_tqdm=False)
    return read_stats(llm, reset=True)


def experts(stats: EngineStats) -> list[float]:
    return [layer.distinct_after for layer in stats.layers]


def test_no_setting_is_needed(llm: Any) -> None:
    """The table is found, and its tier "balanced" holds, by layer and by the rows of a step.

    One row's four experts fit into M of both layers, so its steps are left alone.
    """
    stats = decoded(llm)
    assert experts(stats) == EXPERTS["balanced"]
    assert stats.settings["tier"] == "balanced"
    own = {index: dict(own["active_experts"]) for index, own in stats.layer_settings.items()}
    assert [(own[index][1], own[index][8]) for index in (0, 1)] == [(5, 9), (11, 11)]
    generate(llm, prompts(1))
    alone = read_stats(llm, reset=True)
    assert (alone.skipped["few_rows"], [layer.steps for layer in alone.layers]) == (11, [0, 0])


@pytest.mark.parametrize(
    ("tiers", "counts"),
    [
        (["fast"] * 8, EXPERTS["fast"]),
        (["fast"] * 7 + ["safe"], EXPERTS["safe"]),
        ([None] * 7 + [{"tier": "safe"}], EXPERTS["safe"]),
        ([None] * 7 + ["fast"], EXPERTS["balanced"]),
    ],
    ids=["one", "the most careful", "beside the engine's", "below the engine's"],
)
def test_a_step_has_the_most_careful_tier_of_its_requests(
    llm: Any, tiers: list[Any], counts: list[float]
) -> None:
    """M follows what the decoding requests ask for, and is the engine's again behind them."""
    assert experts(decoded(llm, tiers)) == counts
    assert experts(decoded(llm)) == EXPERTS["balanced"]


def test_another_tier_while_serving(llm: Any) -> None:
    """A tier, a number for all layers and numbers by layer follow each other without a restart."""
    for changes, counts in (
        ({"tier": "fast"}, EXPERTS["fast"]),
        ({"active_experts": 10}, [10, 10]),
        ({"active_experts": {0: 11}}, [11, 10]),
        ({"tier": "safe"}, EXPERTS["safe"]),
        ({"layers": {1: {"select_top_k": 4}}}, None),
    ):
        configure(llm, **changes)
        stats = decoded(llm)
        if counts is not None:
            assert experts(stats) == counts, changes
    # S of K in one layer keeps every slot of it.
    assert stats.layers[0].distinct_after == 12
    assert stats.layers[1].slots_rerouted == 0
    assert stats.layers[1].distinct_before > 12


def test_an_unknown_tier_is_refused(llm: Any) -> None:
    """A request that asks for a tier that the table lacks is refused with those that it has."""
    with pytest.raises(ConfigError, match=r'unknown tier .sfae.; .* "off" or one of balanced, fast, safe'):
        generate(llm, prompts(1), extra_args={"sere": {"tier": "sfae"}})
    assert len(generate(llm, prompts(1), tokens=3)[0]) == 3


def test_counting_re_routes_nothing(llm: Any) -> None:
    """An engine that only counts gives the tokens of one that is off, and counts its experts."""
    configure(llm, enabled=False)
    expected = generate(llm, prompts())
    configure(llm, enabled=True, count_only=True)
    assert generate(llm, prompts(), extra_args={"sere": "fast"}) == expected
    stats = read_stats(llm, reset=True)
    assert [layer.slots_rerouted for layer in stats.layers] == [0, 0]
    assert experts(stats) == [layer.distinct_before for layer in stats.layers]
    configure(llm, count_only=False)
