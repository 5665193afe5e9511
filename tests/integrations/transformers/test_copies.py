"""Copies of a re-routed model, models that move under a handle, and threads."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.errors import ConcurrentCalls
from tests.support.decoding import decode, prompts, random_table
from tests.support.patience import HANGS_S
from tests.support.tiny import tiny_model


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("make", [copy.deepcopy, saved_and_loaded], ids=["deepcopy", "save"])
def test_a_copy_is_the_model_as_it_is(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, make: object
) -> None:
    """The copy is not re-routed, says so, and can be re-routed by a handle of its own."""
    table = random_table(model)
    plain, logits = decode(model, prompts())
    with integration.apply(model, table, select_top_k=1) as handle:
        rerouted, _ = decode(model, prompts())
        other = make(model)  # type: ignore[operator]
        (line,) = [record.getMessage() for record in caplog.records]
        assert "while re-routing was on; the copy is not re-routed, call sere.apply on it" in line
        same, same_logits = decode(other, prompts())
        assert torch.equal(same, plain)
        assert torch.equal(same_logits, logits)
        assert handle.activity().calls == 6
        with integration.apply(other, table, select_top_k=1) as own:
            assert torch.equal(decode(other, prompts())[0], rerouted)
            assert own.activity().calls == 6
        assert torch.equal(decode(model, prompts())[0], rerouted)


def test_a_model_may_change_its_dtype_under_a_handle(model: PreTrainedModel) -> None:
    """What was prepared for the layers follows the ids and weights that come."""
    table = random_table(model)
    with integration.apply(tiny_model("qwen3_moe").to(torch.bfloat16), table, select_top_k=1) as handle:
        handle.quiet = True
    with integration.apply(model, table, select_top_k=1) as handle:
        model.to(torch.bfloat16)
        changed, _ = decode(model, prompts())
        assert handle.stats()[0].steps == 5
    with integration.apply(model, table, select_top_k=1):
        assert torch.equal(decode(model, prompts())[0], changed)


def test_calls_that_overlap_in_two_threads_are_refused(model: PreTrainedModel) -> None:
    """The second call gets a named error, the first one ends as ever, and the model works afterward."""
    table = random_table(model)
    inside, refused = Barrier(2, timeout=HANGS_S), Barrier(2, timeout=HANGS_S)

    def wait(*_: object) -> None:
        inside.wait()
        refused.wait()

    with integration.apply(model, table, select_top_k=1) as handle, ThreadPoolExecutor(1) as pool:
        expected, _ = decode(model, prompts())
        steps = handle.stats()[0].steps
        hook = model.model.layers[1].register_forward_pre_hook(wait)
        first = pool.submit(model, prompts())
        inside.wait()
        with pytest.raises(ConcurrentCalls, match="called in a second thread while a call in another thread"):
            model(prompts())
        refused.wait()
        assert first.result().logits.shape == (6, 5, 96)
        hook.remove()
        assert torch.equal(decode(model, prompts())[0], expected)
        assert handle.stats()[0].steps == 2 * steps


def test_threads_may_take_turns(model: PreTrainedModel) -> None:
    """One call after the other, each in a thread of its own, is re-routed like any."""
    with integration.apply(model, random_table(model), select_top_k=1):
        expected, _ = decode(model, prompts())
        for _ in range(2):
            with ThreadPoolExecutor(1) as pool:
                assert torch.equal(pool.submit(decode, model, prompts()).result()[0], expected)
