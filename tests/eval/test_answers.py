"""Right answers on a tiny model: the record, its comparisons, and continuing after an interruption."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sere.bench.target import random_table
from sere.engines.transformers import apply_setting
from sere.errors import ConfigError, DataError, InputError, TableMismatch
from sere.eval.digests import weights_digest
from sere.eval.plan import QuestionPlan
from sere.eval.questions import encode_prompts, held_out, held_out_english, mark
from sere.eval.run import evaluate
from sere.eval.statistics.by_question import paired_difference, wilson
from sere.integrations.transformers.inputs import cache_argument, find_cache
from sere.policies.spec import parse_spec, parse_specs
from tests.support.tiny import tiny_model

ALL_KINDS = [
    "sere:select_top_k=1,active_experts=2",
    "random:select_top_k=1",
    "topk:select_top_k=1",
    "oea:select_top_k=1",
    "xshare:budget=6",
    "lynx:drop_share=0.5",
]


def plan(**changes: Any) -> QuestionPlan:
    values: dict[str, Any] = {
        "settings": parse_specs(["sere:select_top_k=1"]),
        "batch_sizes": [2],
        "questions": held_out(2, tasks=["addition", "sorting"]),
        "max_new_tokens": 4,
    }
    return QuestionPlan(**(values | changes))


def test_every_kind_of_setting_is_measured_beside_off(model: Any, tokenizer: Any) -> None:
    """SERE, the control and every other rule run; each record has counts, scores and a paired difference."""
    passages = held_out_english(2)
    record = evaluate(
        model,
        tokenizer,
        plan(settings=parse_specs(ALL_KINDS), passages=passages),
        table=random_table(model),
    )
    assert [case["setting"] for case in record["cases"]] == ["off", *ALL_KINDS]
    off = record["cases"][0]
    assert off["experts"]["slots_rerouted"] == 0
    assert off["text"]["kl"] < 1e-8
    assert "difference" not in off["tasks"]["all"]
    for case in record["cases"][1:]:
        assert case["loop"] == "rows"
        assert case["experts"]["distinct_after"] < off["experts"]["distinct_after"], case["setting"]
        assert len(case["experts"]["layers"]) == 2
        assert case["text"]["tokens"] == off["text"]["tokens"]
        assert case["text"]["kl"] > 1e-6
        assert set(case["tasks"]) == {"addition", "sorting", "all"}
    json.dumps(record, allow_nan=False)
    assert record["plan"]["tasks"] == {"addition": 2, "sorting": 2}
    assert {"versions", "machine", "commit", "clean_tree", "utc"} <= set(record["provenance"])


def test_english_is_scored_on_every_cache(tokenizer: Any) -> None:
    """If the cache is not one of plain full attention, the passages show what a setting changes too."""
    sliding = tiny_model("gpt_oss", vocab_size=len(tokenizer))
    passages = [text[:30] for text in held_out_english(2)]
    record = evaluate(
        sliding, tokenizer, plan(settings=parse_specs(["topk:select_top_k=1"]), passages=passages)
    )
    off, reduced = record["cases"]
    assert off["loop"] == "generate"
    assert off["text"]["kl"] < 1e-8
    assert reduced["text"]["kl"] > 1e-6


def test_results_are_shares_with_paired_differences(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task's share is Wilson's of its marks; the difference is the paired one to off at the same B."""
    marks = iter([[True, True, False, False], [True, False, True, False]])
    monkeypatch.setattr("sere.eval.answers.mark", lambda *_: next(marks))
    record = evaluate(model, tokenizer, plan(), table=random_table(model))
    off, sere = (case["tasks"] for case in record["cases"])
    assert (off["addition"]["marks"], off["sorting"]["marks"]) == ("10", "10")
    assert (sere["addition"]["marks"], sere["sorting"]["marks"]) == ("11", "00")
    assert sere["addition"]["share"]["low"] == wilson(2, 2).low
    difference = paired_difference([True, False, True, False], [True, True, False, False])
    assert sere["all"]["difference"]["low"] == difference.low
    assert sere["addition"]["difference"]["value"] == 0.5


def test_models_of_other_weights_have_other_digests(model: Any) -> None:
    """A model of equal shape and name but other weights is not taken for the same."""
    first = weights_digest(model)
    assert weights_digest(model) == first
    weight = next(model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    try:
        assert weights_digest(model) != first
    finally:
        weight.data.copy_(before)


def test_rows_that_are_fed_the_pad_token_count(model: Any) -> None:
    """In our decode steps every row is real, so a pad token that the model itself chose still votes."""
    with apply_setting(model, parse_spec("off"), None) as handle:
        import torch

        cache = find_cache(model(torch.tensor([[5, 6], [7, 8]])))
        pad = model.generation_config.pad_token_id
        model(torch.tensor([[pad], [9]]), **cache_argument(model, cache))
        assert [layer.rows for layer in handle.stats()] == [2, 2]


def test_wrong_tables_are_refused(model: Any, tokenizer: Any) -> None:
    """A missing table and another model's are named before anything is decoded."""
    with pytest.raises(ConfigError, match="needs a similarity table"):
        evaluate(model, tokenizer, plan())
    other = random_table(tiny_model("olmoe"))
    with pytest.raises(TableMismatch):
        evaluate(model, tokenizer, plan(), table=other)


def test_questions_are_interleaved_and_marked_by_their_final_answer(tokenizer: Any) -> None:
    """Tasks alternate; a question's own solution is right, another ending wrong; wrong names are refused."""
    asked = held_out(2, tasks=["addition", "sorting"])
    assert [question.task for question in asked] == ["addition", "sorting"] * 2
    solutions = encode_prompts(tokenizer, [question.solution for question in asked])
    assert mark(tokenizer, asked, solutions) == [True] * 4
    assert mark(tokenizer, asked[:1], [solutions[0] + solutions[0][-1:]]) == [False]
    with pytest.raises(InputError, match="did you mean 'sorting'"):
        held_out(1, tasks=["sortin"])
    with pytest.raises(InputError, match="at least 1 per task, got 0"):
        held_out(0)


def test_exhausted_sets_are_data_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a task or the English cannot fill what was asked for, the error says so."""

    def exhausted(*_: Any, **__: Any) -> list[Any]:
        raise ValueError("english has fewer than 9 distinct test items; ask for at most 7")

    monkeypatch.setattr("sere.eval.questions.english", exhausted)
    monkeypatch.setattr("sere.eval.questions.questions", exhausted)
    with pytest.raises(DataError, match="text: english has fewer than 9"):
        held_out_english(9)
    with pytest.raises(DataError, match=r"questions: .* ask for at most 7"):
        held_out(9)
