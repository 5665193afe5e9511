"""The decode loop computes what each question alone would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from sere.errors import InputError
from sere.eval.continuous_batching import supports_rows
from sere.eval.decode import decode, stop_ids

NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=8, num_experts_per_tok=2,
        initializer_range=0.4, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


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
    ends = [place for place, token in enumerate(out) if token in stop]
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
    result = decode(model, asked, batch_size=batch_size, max_new_tokens=24, stop=stop)
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
    decode(model, prompts(1) * 11, batch_size=4, max_new_tokens=3, stop=NO_STOP)
    hook.remove()
    steps = [n for n in seen if n == 4]
    # 11 answers of 3 tokens, the first of each from prefill: 22 tokens in steps of 4 rows.
    assert len(steps) == 6


def test_answers_are_cut_at_the_limit_and_at_end_tokens(model: Any) -> None:
    """No answer is longer than the limit or holds an end token; one that ends at once is empty."""
    asked = prompts(6)
    first = [alone(model, prompt, 1, NO_STOP)[0] for prompt in asked]
    result = decode(model, asked, batch_size=2, max_new_tokens=5, stop=frozenset(first[:1]))
    assert result.tokens[0] == []
    assert all(len(tokens) <= 5 for tokens in result.tokens)
    every = decode(model, asked, batch_size=2, max_new_tokens=5, stop=frozenset(range(64)))
    assert every.tokens == [[]] * 6
    assert every.step_ms == []


def test_one_time_per_step_and_one_call_per_answer(model: Any) -> None:
    """Every decode step has a positive time; progress is reported once an answer, fillers never."""
    calls = []
    result = decode(
        model, prompts(7), batch_size=4, max_new_tokens=6, stop=NO_STOP, on_finished=lambda: calls.append(1)
    )
    assert len(calls) == 7
    assert len(result.step_ms) == 10  # two rounds of 5 steps; the first token comes from prefill
    assert min(result.step_ms) > 0


def test_other_caches_use_generate_and_say_so() -> None:
    """A sliding window has no right-aligned rows: generate decodes, the result says so, the answers agree."""
    torch.manual_seed(2)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        initializer_range=0.4, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    sliding = MixtralForCausalLM(config).eval()
    assert not supports_rows(sliding)
    asked = prompts(5)
    result = decode(sliding, asked, batch_size=2, max_new_tokens=6, stop=frozenset({3, 5}))
    assert result.loop == "generate"
    assert result.tokens == [alone(sliding, prompt, 6, frozenset({3, 5})) for prompt in asked]
    assert len(result.step_ms) > 0


def test_stop_ids_come_from_the_model_then_the_tokenizer(model: Any) -> None:
    """The model's generation settings name the end tokens; the tokenizer's is the second choice."""

    class Tokenizer:
        eos_token_id = 9

    assert stop_ids(model) == frozenset()
    assert stop_ids(model, Tokenizer()) == {9}
    model.generation_config.eos_token_id = [4, 6]
    assert stop_ids(model, Tokenizer()) == {4, 6}
    model.generation_config.eos_token_id = None


def test_bad_sizes_are_refused(model: Any) -> None:
    """Sizes that are not positive and empty prompts raise, naming what came."""
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        decode(model, [[1]], batch_size=0, max_new_tokens=1, stop=NO_STOP)
    with pytest.raises(InputError, match="max_new_tokens: expected at least 1, got -1"):
        decode(model, [[1]], batch_size=1, max_new_tokens=-1, stop=NO_STOP)
    with pytest.raises(InputError, match="number 1 has no tokens"):
        decode(model, [[1], []], batch_size=1, max_new_tokens=1, stop=NO_STOP)
    assert decode(model, [], batch_size=4, max_new_tokens=1, stop=NO_STOP).tokens == []
