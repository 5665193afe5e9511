"""Steps of which the settings say that nothing can change: the layers leave them alone, and we count them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import InputError
from sere.integrations.transformers import Handle
from sere.integrations.transformers.hooks import HookedLayer
from sere.policies import RandomReroute
from tests.support.decoding import decode, prefilled, prompts, random_table, step


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each step of which a layer's rule was asked."""
    rows: list[int] = []
    route = HookedLayer.route

    def routed(layer: HookedLayer, batch: Any) -> Any:
        rows.append(len(batch.topk_ids))
        return route(layer, batch)

    monkeypatch.setattr(HookedLayer, "route", routed)
    return rows


def steps_of(handle: Handle) -> list[int]:
    return [layer.steps for layer in handle.stats()]


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
def test_one_row_is_left_alone_by_default(
    model: PreTrainedModel, asked: list[int], caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    """At one row M is K: no layer's rule is asked, the steps are counted, and the log says why."""
    plain = decode(model, prompts(1), disable_compile=True, **options)
    with integration.apply(model, random_table(model)) as handle:
        found = decode(model, prompts(1), disable_compile=True, **options)
        seen, why = handle.activity(), handle.why_nothing_changed()
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert asked == []
    assert (seen.eligible, seen.exact, seen.exact_rows, seen.layer_steps) == (5, 5, 1, 0)
    assert why == (
        "nothing was re-routed: active_experts=auto (4 for 1 row) is not below what these batches read (up "
        "to 4 experts per layer); use a smaller active_experts or larger batches"
    )
    (line,) = [record.getMessage() for record in caplog.records if record.name == "sere"]
    assert line == f"sere: Qwen3MoeForCausalLM: {why}"


def test_they_are_counted_like_others_if_asked(model: PreTrainedModel, asked: list[int]) -> None:
    """With ``counts_all`` the layers count the experts of one row, and nothing changes."""
    plain = decode(model, prompts(1))
    with integration.apply(model, random_table(model)) as handle:
        handle.counts_all = True
        assert torch.equal(decode(model, prompts(1))[1], plain[1])
        assert steps_of(handle) == [5, 5]
        assert handle.stats()[0].distinct_before == handle.stats()[0].distinct_after == 4
        assert handle.activity().exact == 0


def test_other_settings_hold_from_the_next_step_on(model: PreTrainedModel, asked: list[int]) -> None:
    """Up to M / K rows are left alone, no more; a smaller M re-routes the next step of the same batch."""
    with integration.apply(model, random_table(model), active_experts=8) as handle:
        for rows in (1, 2, 3):
            decode(model, prompts(rows))
        assert set(asked) == {3}
        asked.clear()
        handle.configure(active_experts=7)
        decode(model, prompts(2))
        assert set(asked) == {2}
        handle.configure(active_experts=12)
        asked.clear()
        decode(model, prompts(3))
        assert asked == []
        assert handle.why_nothing_changed() is None


@pytest.mark.parametrize("cache", ["growing", "mask"])
def test_padding_among_the_rows_is_routed(model: PreTrainedModel, asked: list[int], cache: str) -> None:
    """Rows that have finished, or that the mask leaves out, read no expert of their own."""
    mask = torch.ones(2, 6, dtype=torch.long)
    tokens = torch.tensor([[7], [8]])
    with integration.apply(model, random_table(model), active_experts=8, pad_token_id=9) as handle:
        step(model, tokens, prefilled(model, prompts(2)), attention_mask=mask)
        assert asked == []
        if cache == "mask":
            mask[1, -1] = 0
        else:
            tokens[1] = 9
        step(model, tokens, prefilled(model, prompts(2)), attention_mask=mask)
        assert asked == [2, 2]
        assert handle.stats()[0].rows == 1


@pytest.mark.parametrize(
    ("budgets", "routed"),
    [([1], []), ([4], []), ([-1], []), ([1, 0], [2, 2]), ([4, -2], [2, 2])],
    ids=["one", "one protected", "one finished", "two", "protected"],
)
def test_budgets_of_rows(
    model: PreTrainedModel, asked: list[int], budgets: list[int], routed: list[int]
) -> None:
    """A row alone is left alone whatever its budget is; of several rows, none is asked what they are."""
    tokens = torch.tensor([[7], [8]])[: len(budgets)]
    with integration.apply(model, random_table(model), active_experts=8) as handle:
        handle.row_budgets = budgets
        step(model, tokens, prefilled(model, prompts(len(budgets))))
        assert asked == routed
        with pytest.raises(InputError, match="row_budgets: expected one integer per row"):
            step(model, torch.tensor([[7]] * 3), prefilled(model, prompts(3)))


def test_rules_without_settings_of_sere(model: PreTrainedModel, asked: list[int]) -> None:
    """Every rule says for itself which steps it surely leaves alone."""
    with integration.apply(model, policy=RandomReroute(1, active_experts=8)) as handle:
        decode(model, prompts(2))
        assert asked == []
        assert handle.activity().exact == 5
        assert handle.why_nothing_changed() == (
            "nothing was re-routed: the policy changed no slot of batches that read up to 8 experts per layer"
        )


def test_compiled_code_leaves_it_to_the_layers(model: PreTrainedModel) -> None:
    """Compiled code outlives the settings: one graph counts every step, and heeds a smaller M."""
    with integration.apply(model, random_table(model)) as handle:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for _ in range(2):
            step(compiled, torch.tensor([[7]]), prefilled(model, prompts(1)))  # type: ignore[arg-type]
        assert steps_of(handle) == [2, 2]
        assert handle.stats()[0].slots_rerouted == 0
        handle.configure(active_experts=1)
        with torch.compiler.set_stance("fail_on_recompile"):
            step(compiled, torch.tensor([[7]]), prefilled(model, prompts(1)))  # type: ignore[arg-type]
        assert handle.stats()[0].slots_rerouted > 0


def test_a_layer_that_sees_more_rows_is_routed(model: PreTrainedModel, asked: list[int]) -> None:
    """What is known of a call's rows says nothing about a layer with more of them."""
    experts = model.model.layers[0].mlp.experts
    hidden = torch.zeros(2, model.config.hidden_size)
    ids, weights = torch.arange(8).reshape(2, 4), torch.full((2, 4), 0.25)

    def inside(*_: object) -> None:
        experts(hidden, ids, weights)

    with integration.apply(model, random_table(model), active_experts=4):
        hook = model.model.layers[1].register_forward_pre_hook(inside)
        cache = prefilled(model, prompts(1))
        asked.clear()
        step(model, torch.tensor([[7]]), cache)
        hook.remove()
    assert asked == [2]
