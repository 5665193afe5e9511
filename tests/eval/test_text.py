"""Perplexity and divergence in decode steps equal those of a plain forward pass."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch

from sere.errors import DataError
from sere.eval.text import PREFIX, Text, passage_texts, paused, score_texts, summarize
from sere.integrations.transformers import apply
from sere.integrations.transformers.inputs import cache_argument, find_cache
from sere.policies.topk import TopK
from tests.support.tiny import ARCHITECTURES, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe", vocab_size=50, eos_token_id=None, bos_token_id=None)


def texts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(PREFIX + 2, 30, (count,), generator=generator).tolist()
    return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def plain(model: Any, texts: list[list[int]]) -> tuple[float, int]:
    """Return the perplexity of full forward passes over the same tokens, and their number."""
    loss, count = 0.0, 0
    for text in texts:
        logits = model(torch.tensor([text])).logits[0].double().log_softmax(-1)
        for index in range(PREFIX + 1, len(text)):
            loss -= float(logits[index - 1, text[index]])
            count += 1
    return exp(loss / count), count


@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_unmodified_perplexity_equals_that_of_forward_passes(model: Any, batch_size: int) -> None:
    """Reading token by token in steps of B rows gives a plain pass's perplexity, and no divergence."""
    read = texts(20)
    score = summarize(score_texts(model, passage_texts(read), batch_size=batch_size))
    perplexity, count = plain(model, read)
    assert score["tokens"] == count
    assert score["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert 0 <= score["kl"] < 1e-8


def test_divergence_counts_what_decode_steps_change(model: Any) -> None:
    """A change of decode steps only shows as divergence, and leaves its reference alone."""
    read = [text[: PREFIX + 2] for text in texts(6)]  # one scored token each: no changed cache behind it

    def halve(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, ids, weights = args
        return (hidden, ids, weights / 2 if len(hidden) == 3 else weights)

    hooks = [layer.mlp.experts.register_forward_pre_hook(halve) for layer in model.model.layers]
    score = summarize(score_texts(model, passage_texts(read), batch_size=3))
    for hook in hooks:
        hook.remove()
    expected = 0.0
    for text in read:
        with torch.no_grad():
            before = model(torch.tensor([text[:-1]]), use_cache=True)
            cache = find_cache(model(torch.tensor([text[:-2]]), use_cache=True))
            hooks = [
                layer.mlp.experts.register_forward_pre_hook(lambda _, a: (a[0], a[1], a[2] / 2))
                for layer in model.model.layers
            ]
            after = model(torch.tensor([text[-2:-1]]), **cache_argument(model, cache))
            for hook in hooks:
                hook.remove()
        p, q = (out.logits[0, -1].double().log_softmax(-1) for out in (before, after))
        expected += float((p.exp() * (p - q)).sum())
    assert score["kl"] == pytest.approx(expected / len(read), rel=1e-4)
    assert score["kl"] > 1e-4


def test_short_passages_are_refused(model: Any) -> None:
    """A passage without a token to score raises, saying how long it must be."""
    with pytest.raises(DataError, match="at least 10 tokens, got one of 9"):
        passage_texts([[1] * 20, [1] * 9])


@torch.no_grad()
def alone(model: Any, text: Text) -> float:
    """Return the loss of a full forward pass over the scored tokens."""
    logits = model(torch.tensor([text.tokens])).logits[0].double()[text.read : -1]
    wanted = torch.tensor(text.tokens[text.read + 1 :])
    loss = -logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
    return float(loss)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_scored_in_decode_steps(name: str) -> None:
    """Whatever the cache, unmodified scores are those of a plain pass; a change of decode steps shows."""
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(5)
    read = [
        Text(torch.randint(3, 96, (before + after,), generator=generator).tolist(), before)
        for before, after in ((3, 9), (20, 4), (1, 2), (7, 12), (5, 30))
    ]
    finished = []
    scores = score_texts(model, read, batch_size=3, on_finished=lambda: finished.append(1))
    assert len(finished) == len(read)
    assert [score.tokens for score in scores] == [text.scored for text in read] == [8, 3, 1, 11, 29]
    for text, score in zip(read, scores, strict=True):
        assert score.loss == pytest.approx(alone(model, text), rel=1e-4)
        assert score.agreed == text.scored
        assert 0 <= score.kl < 1e-6
    with apply(model, policy=TopK(select_top_k=1), pad_token_id=-1) as handle:
        changed = score_texts(model, read, batch_size=3, unmodified=lambda: paused(handle))
        assert all(layer.rows == 3 for layer in handle.stats())
    assert all(score.kl > 1e-4 for score in changed)
    assert sum(score.agreed for score in changed) < sum(text.scored for text in read)
    assert [score.tokens for score in changed] == [score.tokens for score in scores]
