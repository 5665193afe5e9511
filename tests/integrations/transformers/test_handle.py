"""The handle: removal, statistics, and budgets that are set on it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import InputError
from sere.integrations.transformers.inputs import cache_argument, find_cache
from sere.reroute import COUNTERS, reroute
from tests.support.decoding import decode, hook_count, prefilled, prompts, random_table, step


def test_hooks_are_gone_after_an_exception(model: PreTrainedModel) -> None:
    """Leaving the block by an exception removes every hook, and the model is as it was."""
    plain, logits = decode(model, prompts())
    handle = integration.apply(model, random_table(model), select_top_k=1)
    assert hook_count(model) == 2 * 2 + 2 * 2, "before and after two experts modules, the model, its decoder"
    with pytest.raises(ZeroDivisionError), handle:
        raise ZeroDivisionError
    assert hook_count(model) == 0
    same, same_logits = decode(model, prompts())
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)


def test_removing_twice_is_harmless_and_statistics_stay(model: PreTrainedModel) -> None:
    """The numbers of a run can be read after its block."""
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        assert handle.active
        decode(model, prompts())
    handle.remove()
    assert not handle.active
    assert handle.stats()[0].steps == 5
    handle.reset_stats()
    assert handle.stats()[0].steps == 0
    handle.enabled = False
    assert not handle.enabled


def test_statistics_are_per_step_and_per_layer(model: PreTrainedModel) -> None:
    """A threshold above every similarity: every secondary expert is critical and nothing moves."""
    with integration.apply(model, random_table(model), select_top_k=1, threshold=1.5) as handle:
        decode(model, prompts())
        stats = handle.stats()
    assert [s.name for s in stats] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for s in stats:
        assert s.slots_rerouted == 0
        assert s.distinct_after == s.distinct_before
        assert 0 < s.critical < s.distinct_before


def test_one_wait_for_all_layers(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, and the guard that looks with them, copy the counters of all layers at once."""
    copies = []
    copy_out = torch.Tensor.tolist
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        decode(model, prompts())
        monkeypatch.setattr(torch.Tensor, "tolist", lambda t: copies.append(t.shape) or copy_out(t))
        stats = handle.stats()
        monkeypatch.undo()
    assert [layer.steps for layer in stats] == [5, 5]
    assert set(copies) == {(2, len(COUNTERS))}


def test_another_default_device_changes_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    """Every tensor of ours names its device: tables load, models are hooked, and budgets are set as ever."""
    table, path = random_table(model), tmp_path / "table.safetensors"
    table.save(path)
    with torch.no_grad():
        cache = find_cache(model(prompts()))
    inputs = {
        "input_ids": prompts(6, 1),
        "position_ids": torch.full((6, 1), 5),
        **cache_argument(model, cache),
    }
    rows = []
    for device in (None, "meta"):
        torch.set_default_device(device)
        try:
            with integration.apply(model, path, select_top_k=1, active_experts=3, threshold=0.1) as handle:
                handle.row_budgets = [1, 1, -1, 4, 1, 1]
                handle.quiet = True
                with torch.no_grad():
                    rows.append(model(**inputs | cache_argument(model, copy.deepcopy(cache))).logits)
                assert handle.stats()[0].rows == 5
            routing = reroute(torch.tensor([[0, 1]], device="cpu"), torch.tensor([[0.7, 0.3]], device="cpu"),
                              table.layers[0], active_experts=0, row_budgets=[1])  # fmt: skip
            assert routing.ids.tolist() == [[0, 0]]
            assert table.critical_experts(0, 2.0) == tuple(range(16))
        finally:
            torch.set_default_device(None)
    assert torch.equal(*rows)


def test_budgets_of_the_wrong_length_are_refused(model: PreTrainedModel) -> None:
    """The text names the rows of the step and the number of budgets; the model works again afterward."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    handle.row_budgets = [4, 4]
    cache = prefilled(model, prompts(3))
    feed = torch.tensor([[8], [9], [10]])
    with pytest.raises(
        InputError, match=r"row_budgets: expected one integer per row, 3 for this step, got 2; set"
    ):
        step(model, feed, cache)
    handle.row_budgets = None
    step(model, feed, cache)
    assert handle.stats()[0].steps == 1


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ([0.5, 1.0], r"expected one integer per row, got 0.5 \(float\)"),
        ([[1, 2]], r"expected one integer per row, got \[1, 2\] \(list\)"),
        ([True, 2], r"expected one integer per row, got True \(bool\)"),
        (torch.tensor(3), "expected one integer per row of the batch, got torch.int64 of shape"),
        (torch.ones(3), "expected one integer per row of the batch, got torch.float32 of shape"),
    ],
    ids=["floats", "two axes", "a bool", "no axis", "a tensor of floats"],
)
def test_budgets_that_are_no_row_of_integers_are_refused(
    model: PreTrainedModel, budget: Any, text: str
) -> None:
    """Wrong dtypes and shapes are found when they are set; the budgets that held before still hold."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    handle.row_budgets = [4, 2**40]
    with pytest.raises(InputError, match=f"row_budgets: {text}"):
        handle.row_budgets = budget
    assert handle.row_budgets is not None
    assert handle.row_budgets.tolist() == [4, 2**31 - 1]
