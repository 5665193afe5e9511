"""Any model is compared with itself: its own continuations, scored in decode steps under each setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log
from typing import Any

import pytest
import torch

from sere.bench.target import random_table
from sere.engines.transformers import apply_setting
from sere.errors import AlreadyApplied, ConfigError, DataError, InputError
from sere.eval.plan import PromptPlan
from sere.eval.run import evaluate
from sere.eval.statistics.by_prompt import mean_per_token, share_of_tokens
from sere.policies.spec import parse_spec, parse_specs
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

PROMPTS = ["add 4821", "the mill stood by", "a", "sort 7 3 9", "reverse", "one two three four", "x y"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def build(name: str, tokenizer: Any) -> Any:
    model = tiny_model(name, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [1, *range(40, 46)]
    return model


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return build("qwen2_moe", tokenizer)


def plan(**changes: Any) -> PromptPlan:
    values: dict[str, Any] = {
        "settings": parse_specs(["sere:select_top_k=1"]),
        "batch_sizes": [3],
        "prompts": PROMPTS,
        "max_new_tokens": 9,
    }
    return PromptPlan(**(values | changes))


@torch.no_grad()
def own_continuation(model: Any, ids: Sequence[int], limit: int) -> list[int]:
    """Return the greedy tokens of one prompt by full forward passes, the end token included."""
    text = list(ids)
    while len(text) - len(ids) < limit:
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] in model.generation_config.eos_token_id:
            break
    return text[len(ids) :]


# One for each kind of cache; tests/eval/test_text.py scores all architectures.
@pytest.mark.parametrize("name", ["olmoe", "qwen3_next", "gpt_oss", "deepseek_v3", "longcat_flash"])
def test_models_of_every_cache_are_compared_with_itself(name: str, tokenizer: Any) -> None:
    """Off agrees with itself up to rounding, at each batch size; a setting that re-routes does not."""
    model = build(name, tokenizer)
    settings = parse_specs(["sere:active_experts=0", "topk:select_top_k=1"])
    record = evaluate(
        model, tokenizer, plan(settings=settings, batch_sizes=[1, 3]), table=random_table(model)
    )
    wanted = [own_continuation(model, tokenizer(text)["input_ids"], 9) for text in PROMPTS]
    lengths = [len(tokens) - 1 for tokens in wanted if len(tokens) > 1]
    assert record["continuations"]["scored_tokens"] == lengths
    assert len(record["cases"]) == 6
    for case in record["cases"]:
        experts = case["experts"]
        if case["setting"] == "off":
            assert case["agreement"]["value"] == 1
            assert 0 <= case["kl"]["value"] < 1e-6
            assert experts["distinct_before"] == experts["distinct_after"]
        else:
            assert case["nothing_changed"] is None
            assert case["kl"]["value"] > 1e-3
            assert case["agreement"]["value"] < 1
            assert experts["distinct_after"] < experts["distinct_before"]
    json.dumps(record, allow_nan=False)


def test_results_are_estimates_over_prompts(model: Any, tokenizer: Any) -> None:
    """Each result is made of the sums by prompt that stand beside it; the loss is paired with off's."""
    record = evaluate(model, tokenizer, plan(), table=random_table(model))
    off, sere = record["cases"]
    tokens = record["continuations"]["scored_tokens"]
    share = share_of_tokens(sere["prompts"]["agreed"], tokens)
    assert sere["agreement"] == {"value": share.value, "low": share.low, "high": share.high}
    loss = mean_per_token(sere["prompts"]["loss"], tokens)
    assert loss.low is not None
    assert log(sere["perplexity"]["value"]) == pytest.approx(loss.value)
    assert log(sere["perplexity"]["low"]) == pytest.approx(loss.low)
    more = [a - b for a, b in zip(sere["prompts"]["loss"], off["prompts"]["loss"], strict=True)]
    assert sere["loss_vs_baseline"]["value"] == pytest.approx(sum(more) / sum(tokens))
    assert "loss_vs_baseline" not in off
    assert record["plan"]["intervals"]["unit"] == "prompt"
    assert {"versions", "machine"} <= set(record["provenance"])


def test_a_setting_that_reroutes_nothing_says_why(model: Any, tokenizer: Any) -> None:
    """A divergence of nothing is not read as no loss: the case holds the reason."""
    found = evaluate(
        model,
        tokenizer,
        plan(settings=parse_specs(["sere:select_top_k=1,active_experts=15"])),
        table=random_table(model),
    )
    off, idle = found["cases"]
    assert off["nothing_changed"] is None
    assert idle["experts"]["slots_rerouted"] == 0
    assert "active_experts=15 is not below what these batches read" in idle["nothing_changed"]


def test_fewer_prompts_than_rows_are_said(model: Any, tokenizer: Any) -> None:
    """The rows of a case are those that its steps had; one prompt has no interval."""
    record = evaluate(model, tokenizer, plan(settings=parse_specs([]), batch_sizes=[8], prompts=PROMPTS[:1]))
    (case,) = record["cases"]
    assert (case["batch_size"], case["rows"]) == (8, 1)
    assert case["agreement"] == {"value": 1.0, "low": None, "high": None}


def test_generation_settings_of_the_checkpoint_do_not_count(tokenizer: Any) -> None:
    """Greedy means the most likely token: penalties and bans of a checkpoint's own settings are left out."""
    model = build("qwen3_next", tokenizer)
    table = random_table(model)
    before = evaluate(model, tokenizer, plan(), table=table)["continuations"]["digest"]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = list(range(3, 40))
    own = model.generation_config
    assert evaluate(model, tokenizer, plan(), table=table)["continuations"]["digest"] == before
    assert model.generation_config is own


def test_a_missing_table_is_refused(model: Any, tokenizer: Any) -> None:
    """The setting that needs the table is named."""
    with pytest.raises(ConfigError, match="needs a similarity table"):
        evaluate(model, tokenizer, plan())


def test_a_model_that_is_rerouted_already_is_refused(model: Any, tokenizer: Any) -> None:
    """Its continuations would not be the unmodified model's."""
    with (
        apply_setting(model, parse_spec("topk:select_top_k=1"), None, pad_token_id=-1),
        pytest.raises(AlreadyApplied),
    ):
        evaluate(model, tokenizer, plan(settings=parse_specs([])))


def test_continuations_without_a_token_to_score_are_refused(tokenizer: Any) -> None:
    """If every first token ends the text, no decode step is left, and the error says what to give."""
    model = build("qwen2_moe", tokenizer)
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    with pytest.raises(DataError, match="the model ends each of the 7 prompts with its first token"):
        evaluate(model, tokenizer, plan(settings=parse_specs([])))


def test_tokens_beyond_the_embedding_are_named(tokenizer: Any) -> None:
    """Another model's tokenizer is found before anything is decoded, with the token and both sizes."""
    small = tiny_model("olmoe", vocab_size=60)
    with pytest.raises(DataError, match=r"token '}' has the id \d+, but the model's embedding has 60 rows"):
        evaluate(small, tokenizer, plan(settings=parse_specs([]), prompts=["a", "}"]))


def test_logits_that_are_no_numbers_are_refused(tokenizer: Any) -> None:
    """A model that overflows gives no scores, and the error says what to try."""
    broken = build("olmoe", tokenizer)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"logits are not finite numbers.*--dtype bfloat16 or float32"):
        evaluate(broken, tokenizer, plan(settings=parse_specs([])))
