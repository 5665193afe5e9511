"""What is refused when a plan is made, and what a plan says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import InputError
from sere.eval.plan import EvalPlan, PromptPlan, QuestionPlan
from sere.eval.questions import held_out
from sere.policies.spec import parse_specs
from tests.support.checkpoints import tiny_tokenizer

QUESTIONS = held_out(2, tasks=["addition", "sorting"])
ASKED: dict[type[EvalPlan], dict[str, Any]] = {
    QuestionPlan: {"questions": QUESTIONS},
    PromptPlan: {"prompts": ["one", "two"]},
}


def make(kind: type[EvalPlan], **changes: Any) -> EvalPlan:
    values = {"settings": parse_specs(["topk:select_top_k=1"]), "batch_sizes": [2]} | ASKED[kind]
    return kind(**(values | changes))


@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {"settings": parse_specs(["topk:select_top_k=1"])[1:]}, "first setting must be 'off'",
            id="no baseline",
        ),
        pytest.param({"batch_sizes": []}, r"batch sizes of at least 1, got \[\]", id="no batch size"),
        pytest.param({"batch_sizes": [2, 0]}, r"batch sizes of at least 1, got \[2, 0\]", id="no row"),
    ],
)  # fmt: skip
def test_wrong_settings_and_sizes_are_refused(
    kind: type[EvalPlan], changes: dict[str, Any], words: str
) -> None:
    """Every plan has a baseline and rows."""
    with pytest.raises(InputError, match=words):
        make(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (QuestionPlan, {"questions": []}, "at least one question, got none"),
        (QuestionPlan, {"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (PromptPlan, {"prompts": []}, "at least one prompt, got none"),
        (PromptPlan, {"max_new_tokens": 1}, "max_new_tokens: expected at least 2, got 1"),
    ],
)
def test_nothing_to_ask_or_to_score_is_refused(
    kind: type[EvalPlan], changes: dict[str, Any], words: str
) -> None:
    """A continuation needs a second token, because the first comes from prefill."""
    with pytest.raises(InputError, match=words):
        make(kind, **changes)


@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"], ids=["without", "with"])
def test_a_chat_template_counts_only_if_there_is_one(kind: type[EvalPlan], template: str | None) -> None:
    """The record says what was done, not what was wished."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    plan = make(kind, chat_template=True).for_tokenizer(tokenizer)
    assert plan.chat_template is (template is not None)


def test_other_texts_have_other_digests() -> None:
    """Order and wording count; so cases of another run are not taken over."""
    questions = [make(QuestionPlan, questions=asked).describe() for asked in (QUESTIONS, QUESTIONS[::-1])]
    prompts = [make(PromptPlan, prompts=asked).describe() for asked in (["one", "two"], ["one", "too"])]
    assert questions[0]["questions_digest"] != questions[1]["questions_digest"]
    assert prompts[0]["prompts_digest"] != prompts[1]["prompts_digest"]
