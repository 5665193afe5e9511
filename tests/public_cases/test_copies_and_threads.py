"""Somebody copies a re-routed model as a baseline, or serves it from several threads."""

from __future__ import annotations

import copy
from threading import Barrier, BrokenBarrierError, Thread

import torch

import sere
from sere.errors import ConcurrentCalls
from tests.support.decoding import decode, prompts, random_table
from tests.support.patience import HANGS_S
from tests.support.tiny import tiny_model


def test_a_deep_copy_is_the_baseline() -> None:
    """``copy.deepcopy`` of a re-routed model gives the model as it was."""
    model = tiny_model("qwen3_moe")
    plain, _ = decode(model, prompts())
    with sere.apply(model, random_table(model), select_top_k=1) as handle:
        baseline = copy.deepcopy(model)
        assert torch.equal(decode(baseline, prompts())[0], plain)
        assert not torch.equal(decode(model, prompts())[0], plain)
    assert handle.activity().calls == 6


def test_four_threads_at_once() -> None:
    """Calls that overlap raise a named error instead of re-routing some steps only."""
    model = tiny_model("qwen3_moe")
    together, errors = Barrier(4), list[BaseException]()

    def meet(*_: object) -> None:
        together.wait(timeout=HANGS_S)

    def run() -> None:
        try:
            model(prompts())
        except (ConcurrentCalls, BrokenBarrierError) as error:
            errors.append(error)
            together.abort()

    with sere.apply(model, random_table(model), select_top_k=1) as handle:
        handle.quiet = True
        model.model.layers[1].register_forward_pre_hook(meet)
        threads = [Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(isinstance(error, ConcurrentCalls) for error in errors) >= 1
