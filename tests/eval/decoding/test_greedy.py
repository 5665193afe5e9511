"""The decode loop computes what each question alone would give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sere.errors import InputError
from sere.eval.decoding.greedy import StopRule, decode, stop_rule
from sere.integrations.transformers.inputs import has_full_attention_cache
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3_moe", vocab_size=64, eos_token_id=None, bos_token_id=None)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [torch.randint(1, 64, (n,), generator=generator).tolist() for n in lengths]


def alone(model: Any, prompt: list[int], limit: int, stop: frozenset[int]) -> list[int]:
    """Return what ``generate`` gives for one prompt by itself."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False,
        eos_token_id=sorted(stop) or None, pad_token_id=0,
    )[0, len(prompt):].tolist()  # fmt: skip
    ends = [index for index, token in enumerate(out) if token in stop]
    return out[: ends[0]] if ends else out


@pytest.mark.parametrize(
    ("batch_size", "count"),
    [
        (1, 5),  # one row: no batch mates
        (3, 20),  # refills all the time, prompts longer and shorter than the cache; two prefill groups
        (16, 40),  # more rows than one prefill group
        (16, 5),  # fewer questions than rows
    ],
)
def test_answers_equal_those_of_generate(model: Any, batch_size: int, count: int) -> None:
    """In float32, every question's tokens are those that generate gives for it alone, whatever B is."""
    stop = frozenset({3, 5, 7, 11, 13, 17, 19, 23})  # many end tokens: rows end at different times
    asked = prompts(count)
    result = decode(model, asked, batch_size=batch_size, rule=StopRule(24, stop))
    assert result.loop == "rows"
    assert result.rows == min(batch_size, count)
    assert result.tokens == [alone(model, prompt, 24, stop) for prompt in asked]
    assert len({len(tokens) for tokens in result.tokens}) > 1


def test_every_step_has_the_same_number_of_rows(model: Any) -> None:
    """The experts see B rows in every decode step, the last one included."""
    seen = []
    hook = model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    decode(model, prompts(1) * 11, batch_size=4, rule=StopRule(3))
    hook.remove()
    steps = [n for n in seen if n == 4]
    # 11 answers of 3 tokens, the first of each from prefill: 22 tokens in steps of 4 rows.
    assert len(steps) == 6


def test_answers_are_cut_at_the_limit_and_at_end_tokens(model: Any) -> None:
    """No answer is longer than the limit or holds an end token; one that ends at once is empty."""
    asked = prompts(6)
    first = [alone(model, prompt, 1, frozenset())[0] for prompt in asked]
    result = decode(model, asked, batch_size=2, rule=StopRule(5, frozenset(first[:1])))
    assert result.tokens[0] == []
    assert all(len(tokens) <= 5 for tokens in result.tokens)
    every = decode(model, asked, batch_size=2, rule=StopRule(5, frozenset(range(64))))
    assert every.tokens == [[]] * 6
    assert every.step_ms == []


def test_one_time_per_step_and_one_call_per_answer(model: Any) -> None:
    """Every decode step has a positive time; progress is reported once an answer, fillers never."""
    calls = []
    result = decode(model, prompts(7), batch_size=4, rule=StopRule(6), on_finished=lambda: calls.append(1))
    assert len(calls) == 7
    assert len(result.step_ms) == 10  # two rounds of 5 steps; the first token comes from prefill
    assert min(result.step_ms) > 0


def test_other_caches_use_generate_and_say_so() -> None:
    """A sliding window has no right-aligned rows: generate decodes, the result says so, the answers agree."""
    sliding = tiny_model("mixtral", vocab_size=64, sliding_window=8, eos_token_id=None, bos_token_id=None)
    assert not has_full_attention_cache(sliding)
    asked = prompts(5)
    result = decode(sliding, asked, batch_size=2, rule=StopRule(6, frozenset({3, 5})))
    assert result.loop == "generate"
    assert result.tokens == [alone(sliding, prompt, 6, frozenset({3, 5})) for prompt in asked]
    assert len(result.step_ms) > 0


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "expected"),
    [
        pytest.param(None, None, set(), id="none"),
        pytest.param(None, 9, {9}, id="tokenizer"),
        pytest.param(4, 9, {4}, id="model"),
        pytest.param([4, 6], 9, {4, 6}, id="several of the model"),
    ],
)
def test_stop_ids_come_from_the_model_then_the_tokenizer(
    of_model: int | list[int] | None, of_tokenizer: int | None, expected: set[int]
) -> None:
    """The model's generation settings name the end tokens; the tokenizer's is the second choice."""
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=of_model))
    tokenizer = SimpleNamespace(eos_token_id=of_tokenizer)
    assert stop_rule(model, tokenizer, 5) == StopRule(5, frozenset(expected))


@pytest.mark.parametrize(
    ("asked", "batch_size", "limit", "words"),
    [
        pytest.param([[1]], 0, 1, "batch_size: expected at least 1, got 0", id="no rows"),
        pytest.param([[1]], 1, -1, "max_new_tokens: expected at least 1, got -1", id="no new tokens"),
        pytest.param([[1], []], 1, 1, "number 1 has no tokens", id="empty prompt"),
    ],
)
def test_bad_sizes_are_refused(
    model: Any, asked: list[list[int]], batch_size: int, limit: int, words: str
) -> None:
    """Sizes that are not positive and empty prompts raise, naming what came."""
    with pytest.raises(InputError, match=words):
        decode(model, asked, batch_size=batch_size, rule=StopRule(limit))


def test_no_prompts_have_no_answers(model: Any) -> None:
    """Nothing is decoded, and nothing raised."""
    assert decode(model, [], batch_size=4, rule=StopRule(1)).tokens == []
