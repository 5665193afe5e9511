"""Settings that change while hooks are set, in eager and in compiled models."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, StaticCache

import sere.integrations.transformers as integration
from sere.bench.target import random_table as table_with_factors
from sere.errors import ConfigError, InputError
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import TopK
from sere.table import SimilarityTable, Tier
from tests.support.decoding import decode, prompts, random_table

TIERS = {
    "balanced": Tier("balanced", active_experts=14),
    "fast": Tier("fast", active_experts=((1, 4), (6, 7)), layers={1: 6}),
}


def tuned(model: PreTrainedModel) -> SimilarityTable:
    return random_table(model).with_tiers(TIERS)


def outcome(model: PreTrainedModel, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and logits of a model that had these settings from the start."""
    with integration.apply(model, tuned(model), **settings):
        return decode(model, prompts())


@pytest.mark.parametrize(
    ("first", "changes", "same_as"),
    [
        ({"active_experts": 15}, {"active_experts": 6}, {"active_experts": 6}),
        ({"active_experts": 6}, {"select_top_k": 2}, {"active_experts": 6, "select_top_k": 2}),
        ({"active_experts": 6}, {"threshold": 0.6}, {"active_experts": 6, "threshold": 0.6}),
        ({"active_experts": 6}, {"keep": {0: [1, 2]}}, {"active_experts": 6, "keep": {0: [1, 2]}}),
        (
            {"active_experts": 9}, {"active_experts": {1: 5}},
            {"active_experts": 9, "layers": {1: {"active_experts": 5}}},
        ),
        ({}, {"tier": "fast"}, {"tier": "fast"}),
        ({"active_experts": 9}, {"tier": "fast"}, {"tier": "fast"}),
        ({"tier": "fast"}, {"active_experts": 9}, {"active_experts": 9}),
        ({"tier": "fast", "threshold": 0.3}, {"tier": "balanced"}, {"tier": "balanced", "threshold": 0.3}),
        (
            {"preset": "paper", "select_top_k": 2}, {"select_top_k": 1},
            {"preset": "paper", "select_top_k": 1},
        ),
    ],
    ids=["M", "S", "rho", "keep", "M of a layer", "tier", "tier for M", "M for tier",
         "another tier", "paper"],
)  # fmt: skip
def test_a_changed_handle_does_what_a_new_one_would(
    model: PreTrainedModel, first: dict[str, Any], changes: dict[str, Any], same_as: dict[str, Any]
) -> None:
    """Tokens and logits are bitwise those of a model that had the settings from the start."""
    expected = outcome(model, **same_as)
    before = outcome(model, **first)
    with integration.apply(model, tuned(model), **first) as handle:
        changed = decode(model, prompts())
        assert torch.equal(changed[1], before[1])
        handle.configure(**changes)
        changed = decode(model, prompts())
    assert torch.equal(changed[0], expected[0])
    assert torch.equal(changed[1], expected[1])
    assert not torch.equal(before[1], expected[1]), "else the test shows nothing"


@pytest.mark.parametrize(
    ("settings", "least_gain"),
    [({}, 0.02), ({"flatten": "off"}, 0.0), ({"flatten": "off", "min_gain": 0.01}, 0.01)],
    ids=["skipped", "computed", "asked for"],
)
def test_a_tiers_least_gain_holds_where_slots_are_skipped(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], least_gain: float
) -> None:
    """Where the experts compute every slot, giving some up saves nothing; one line says so."""
    tiers = {"balanced": Tier("balanced", 14, min_gain=0.02), "fast": Tier("fast", 8, min_gain=0.02)}
    table = table_with_factors(model, factors=True).with_tiers(tiers)
    caplog.set_level(logging.INFO, logger="sere")
    with integration.apply(model, table, **settings) as handle:
        assert handle.config is not None
        assert handle.config.min_gain == least_gain
        handle.configure(tier="fast")
        assert (handle.config.active_experts, handle.config.min_gain) == (8, least_gain)
    said = [line for line in caplog.messages if "least gains of the table's tiers are left out" in line]
    assert len(said) == ("flatten" in settings)


def test_a_tiers_least_gain_with_experts_that_compute_all_slots(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that are computed in a way that is not known to take pairs compute all slots."""
    tiers = {"balanced": Tier("balanced", 14, min_gain=0.02)}
    table = table_with_factors(model, factors=True).with_tiers(tiers)
    monkeypatch.setattr(model.config, "_experts_implementation", "another")
    with integration.apply(model, table) as handle:
        assert handle.config is not None
        assert handle.config.min_gain == 0.0


def test_the_handle_shows_the_settings_that_hold(model: PreTrainedModel) -> None:
    """A tier is shown with its name and its numbers; the counters go on."""
    with integration.apply(model, tuned(model)) as handle:
        assert handle.config is not None
        assert (handle.config.tier, handle.config.active_experts) == ("balanced", 14)
        decode(model, prompts())
        handle.configure(tier="fast")
        assert (handle.config.tier, handle.config.active_experts) == ("fast", ((1, 4), (6, 7)))
        assert handle.config.for_layer(1).active_experts == 6
        decode(model, prompts())
        assert handle.stats()[0].steps == 10


def test_compiled_code_reads_changed_settings(model: PreTrainedModel) -> None:
    """One compilation serves all settings: S, rho and M are in memory."""
    step = torch.compile(model, fullgraph=True, backend="eager")
    with integration.apply(model, tuned(model), active_experts=15) as handle:
        before = one_step(model, step)
        torch.testing.assert_close(before, one_step(model, model), rtol=1e-4, atol=1e-4)
        handle.configure(tier="fast")
        with torch._dynamo.config.patch(error_on_recompile=True):
            changed = one_step(model, step)
        torch.testing.assert_close(changed, one_step(model, model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed, before, rtol=1e-2, atol=1e-2)


def one_step(model: PreTrainedModel, call: Callable[..., object]) -> torch.Tensor:
    """Prefill as it is, then one decode step through ``call``; its logits."""
    given = cache_argument(model, StaticCache(config=model.config, max_cache_len=16))
    with torch.no_grad():
        model(prompts(), **given)
        return call(input_ids=torch.full((6, 1), 8), **given).logits  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"merge": "same"},
            "'merge' cannot be changed while re-routing is on .*; remove the handle and apply",
        ),
        ({"teir": "fast"}, "'teir' cannot be changed .* did you mean 'tier'"),
        ({"tier": "quick"}, "the table has no tier 'quick'; it has balanced, fast"),
        ({"active_experts": True}, "active_experts: expected a number of experts"),
        ({"active_experts": {7: 3}}, "layers: layer 7 has no similarities"),
        ({"threshold": 0.5, "select_top_k": 0}, "select_top_k: expected an integer of at least 1"),
    ],
    ids=["merge", "a typo", "no such tier", "M", "layer", "S"],
)
def test_what_is_refused_changes_nothing(model: PreTrainedModel, changes: dict[str, Any], text: str) -> None:
    """Settings, tokens and logits stay what they were."""
    expected = outcome(model, active_experts=6)
    with integration.apply(model, tuned(model), active_experts=6) as handle:
        config = handle.config
        with pytest.raises(ConfigError, match=text):
            handle.configure(**changes)
        assert handle.config == config
        assert torch.equal(decode(model, prompts())[1], expected[1])


def test_what_has_no_settings_to_change_says_so(model: PreTrainedModel) -> None:
    """A policy is fixed, and a removed handle is of no model."""
    with (
        integration.apply(model, policy=TopK(2)) as handle,
        pytest.raises(InputError, match="the settings of the policy 'topk' are fixed; give apply a table"),
    ):
        handle.configure(select_top_k=1)
    handle = integration.apply(model, tuned(model))
    handle.quiet = True
    handle.remove()
    with pytest.raises(InputError, match="handle: it was removed"):
        handle.configure(tier="fast")


def test_a_reason_is_said_again_for_other_settings(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings that change nothing are told of, also if others did not before them."""
    with (
        caplog.at_level(logging.WARNING, "sere"),
        integration.apply(model, tuned(model), active_experts=15) as handle,
    ):
        decode(model, prompts())
        handle.stats()
        handle.configure(active_experts=[[1, 15]])
        decode(model, prompts())
        handle.stats()
    said = [message for message in caplog.messages if "nothing was re-routed" in message]
    assert ["active_experts=15 is not" in said[0], "active_experts=1-15 (15 for 6 rows) is" in said[1]] == [
        True
    ] * 2
