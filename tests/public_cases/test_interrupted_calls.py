"""Somebody presses Ctrl-C while a re-routed model generates, and goes on with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest
import torch
from transformers import PreTrainedModel

import sere
from sere.integrations.transformers import Handle
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model


def cut_off(model: PreTrainedModel) -> None:
    """Generate until Ctrl-C in the last layer of the second decode step."""
    calls = []

    def press(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_hook(press)
    with suppress(KeyboardInterrupt):
        generate(model)
    hook.remove()


def generate(model: PreTrainedModel) -> None:
    model.generate(prompts(), max_new_tokens=6, do_sample=False)


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("qwen3_moe")


@pytest.fixture
def handle(model: PreTrainedModel) -> Iterator[Handle]:
    with sere.apply(model, random_table(model), select_top_k=1) as handle:
        yield handle


def test_generate_again(model: PreTrainedModel, handle: Handle) -> None:
    """The five decode steps of the second run are counted and re-routed as if nothing had happened before."""
    cut_off(model)
    handle.reset_stats()
    generate(model)
    assert (handle.activity().calls, handle.activity().eligible) == (6, 5)
    assert [layer.steps for layer in handle.stats()] == [5, 5]


@pytest.mark.parametrize("first", [True, False], ids=["cut off in it", "cut off here"])
def test_another_thread(model: PreTrainedModel, handle: Handle, first: bool) -> None:
    """The call that was cut off blocks no other thread, whether its own lives on or has ended."""
    uses = [lambda: cut_off(model), lambda: generate(model)]
    if first:
        thread = Thread(target=uses[0])
        thread.start()
        thread.join()
        uses[1]()
    else:
        uses[0]()
        thread = Thread(target=uses[1])
        thread.start()
        thread.join()
    assert handle.activity().eligible == 2 + 5


def test_a_call_without_a_cache(model: PreTrainedModel, handle: Handle) -> None:
    """It is prefill: the cache of the call that was cut off is not taken for its own."""
    cut_off(model)
    handle.reset_stats()
    with torch.no_grad():
        model.model(prompts()[:, :1], use_cache=False)
    assert (handle.activity().calls, handle.activity().eligible) == (1, 0)
    assert [layer.steps for layer in handle.stats()] == [0, 0]
