"""Log-likelihoods in decode steps equal those of one forward pass, and are what re-routing changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.errors import InputError
from sere.eval.likelihoods import Continuation, log_likelihoods
from sere.integrations.transformers import apply
from sere.policies.topk import TopK
from tests.support.tiny import tiny_model


def continuations(count: int) -> list[Continuation]:
    """Contexts of 1 to 8 tokens and continuations of 1 to 6."""
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(3, 96, (length,), generator=generator).tolist()

    return [Continuation(draw(1 + i % 8), draw(1 + i % 6)) for i in range(count)]


@torch.no_grad()
def in_prefill(model: Any, one: Continuation) -> tuple[float, bool]:
    """Return what one forward pass over the text gives."""
    logits = model(torch.tensor([one.text])).logits[0].float().log_softmax(-1)[len(one.context) - 1 : -1]
    wanted = torch.tensor(one.tokens)
    return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())


@pytest.mark.parametrize("batch_size", [1, 4, 40])
@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2", "gpt_oss", "qwen3_next"])
def test_without_re_routing_they_are_those_of_prefill(name: str, batch_size: int) -> None:
    """At every batch size, with every kind of cache, and for contexts of one token."""
    model, asked = tiny_model(name), continuations(13)
    found = log_likelihoods(model, asked, batch_size=batch_size)
    expected = [in_prefill(model, one) for one in asked]
    assert [one.nats for one in found] == pytest.approx([nats for nats, _ in expected], abs=2e-4)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_greedy_continuation_is_recognized(name: str) -> None:
    """The model's own continuation is greedy; with another last token it is not."""
    model = tiny_model(name)
    context = [5, 9, 21]
    own = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0, 3:].tolist()
    other = [*own[:-1], (own[-1] + 1) % 96]
    found = log_likelihoods(model, [Continuation(context, own), Continuation(context, other)], batch_size=2)
    assert [one.greedy for one in found] == [True, False]


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_every_scored_token_comes_from_a_re_routed_step(name: str) -> None:
    """Also that of a continuation of one token; after a context of one token, the second one on."""
    model = tiny_model(name)
    asked = [Continuation([5, 6, 7], [8]), Continuation([9, 4], [3, 12]), Continuation([9], [3, 12])]
    before = log_likelihoods(model, asked, batch_size=3)
    with apply(model, policy=TopK(select_top_k=1), pad_token_id=-1) as handle:
        after = log_likelihoods(model, asked, batch_size=3)
        assert handle.why_nothing_changed() is None
    assert all(abs(a.nats - b.nats) > 1e-4 for a, b in zip(after, before, strict=True))


def test_what_prefill_predicts_is_exact() -> None:
    """One token after a context of one token takes no decode step."""
    model, asked = tiny_model("qwen3_moe"), [Continuation([5], [8]), Continuation([7], [9])]
    before = log_likelihoods(model, asked, batch_size=2)
    with apply(model, policy=TopK(select_top_k=1), pad_token_id=-1) as handle:
        handle.quiet = True
        after = log_likelihoods(model, asked, batch_size=2)
    assert [one.nats for one in after] == [one.nats for one in before]


def test_each_continuation_is_finished_once() -> None:
    """Fillers are not reported, whatever the number of rows."""
    finished: list[None] = []
    log_likelihoods(
        tiny_model("qwen3_moe"), continuations(9), batch_size=4, on_finished=lambda: finished.append(None)
    )
    assert len(finished) == 9


def test_nothing_to_score() -> None:
    """No continuation gives no result."""
    assert log_likelihoods(tiny_model("qwen3_moe"), [], batch_size=4) == []


@pytest.mark.parametrize("one", [Continuation([], [1]), Continuation([1], [])])
def test_empty_texts_are_refused(one: Continuation) -> None:
    """Without a context nothing predicts, and without tokens nothing is scored."""
    with pytest.raises(InputError, match="at least one token of context and of continuation"):
        log_likelihoods(tiny_model("qwen3_moe"), [one], batch_size=1)
