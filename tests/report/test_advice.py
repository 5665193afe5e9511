"""What a reader sees and is told to do first."""

from __future__ import annotations

from typing import Any

import pytest

from sere.report.advice import Advice, advise
from sere.report.collect import collect
from sere.report.models import by_model
from sere.report.read import source_of
from tests.support.records import answers, divergences, evaluation, lm_eval, share, timing, tuning

GOOD = answers("sere:active_experts=24", 24.0, 0.9, around=0.009)
OFF = answers("off", 40.0, 0.9)
BAD = answers("sere:active_experts=12", 12.0, 0.5)


def advice(*records: dict[str, Any]) -> Advice:
    (part,) = by_model(collect([source_of(one, f"{index}.json") for index, one in enumerate(records)]))
    return advise(part)


def speed(found: Advice) -> tuple[str, str]:
    (number,) = [number for number in found.numbers if number[0].endswith("×")]
    return number


def test_the_fewest_experts_within_the_limit_are_advised() -> None:
    """With the limit, among how many it was chosen, how to serve with it, and how to confirm it."""
    found = advice(evaluation(OFF, GOOD, BAD, answers("drop", 12.0, 0.9, around=0.001)))
    assert found.numbers[0] == (
        "40.0 → 24.0", "experts that a layer reads in steps of 16 rows, sere:active_experts=24",
    )  # fmt: skip
    assert found.numbers[1] == ("+0.0", "points of right answers against off: +0.0 (-0.9 to +0.9)")
    assert found.steps == [
        (
            "Use sere:active_experts=24: of 2 settings of sere measured at 16 rows, it reads the fewest "
            "experts of those whose 95 % interval keeps the loss of right answers within 1 point",
            """vllm serve MODEL --additional-config '{"sere": {"active_experts": 24}}'""",
        ),
        (
            "Measure it again on other questions: the best of 2 looks better than it is",
            "sere eval MODEL --questions others.jsonl --batch-size 16 --setting sere:active_experts=24",
        ),
        (
            "Find the fewest experts for a loss that you accept, layer by layer",
            "sere tune MODEL --prompts prompts.txt",
        ),
        (
            "Measure how much faster it is on your machine",
            "sere bench serve MODEL --setting sere:active_experts=24",
        ),
    ]


def test_a_single_setting_was_not_chosen() -> None:
    """Nothing flatters it."""
    found = advice(evaluation(OFF, GOOD))
    assert found.steps[0][0] == (
        "Use sere:active_experts=24: its 95 % interval keeps the loss of right answers within 1 point"
    )
    assert "again" not in found.steps[1][0]


def test_a_loss_that_the_questions_cannot_rule_out_is_not_advised() -> None:
    """Its interval contains 0 and 3 points; what to ask."""
    found = advice(evaluation())
    assert found.numbers[0][0] == "40.0 → 24.0"
    assert found.steps[0] == (
        "None of 2 settings of sere measured at 16 rows can be advised yet: with 50 questions, the nearest, "
        "sere:active_experts=24, may lose 3 points of right answers, more than 1 point. "
        "Ask more questions, or measure settings that read more experts",
        "sere eval MODEL --questions questions.jsonl --batch-size 16 --setting sere:active_experts=24 "
        "--setting sere:active_experts=31",
    )
    assert (
        advice(evaluation(OFF, answers("sere", 24.0, 0.89)))
        .steps[0][0]
        .startswith("sere cannot be advised yet: with 50 questions, it may lose 3 points of right answers")
    )


def test_where_every_setting_loses_none_is_advised() -> None:
    """The nearest is named, with more experts to try."""
    found = advice(evaluation(OFF, BAD))
    assert found.steps[0] == (
        "sere:active_experts=12 cannot be advised: it loses 40 points of right answers, more than 1 point. "
        "Measure settings that read more experts",
        "sere eval MODEL --questions questions.jsonl --batch-size 16 --setting sere:active_experts=16",
    )


def test_tables_are_told_apart() -> None:
    """A setting alone does not say which one it was."""
    other = {"metric": "cka", "fingerprint": "ffffeeeedddd"}
    (text, _), *_ = advice(evaluation(OFF, GOOD), evaluation(OFF, BAD, table=other)).steps
    assert text.startswith("Use sere:active_experts=24 with the table cka, 12345678: of 2 settings")


def test_a_divergence_is_judged_by_the_balanced_tier() -> None:
    """What is accepted is what the tier accepts, for the whole interval."""
    (text, _), (again, command), *_ = advice(divergences()).steps
    assert text.startswith("Use sere: of 2 settings of sere measured at 16 rows")
    assert text.endswith("keeps the KL from the unmodified model within 0.002 nats per token")
    assert again.startswith("Measure it again on other prompts")
    assert command == "sere eval MODEL --prompts others.txt --batch-size 16 --setting sere"


def test_a_divergence_without_an_interval_is_not_advised() -> None:
    """That of a single prompt: what others would show is not known."""
    record = divergences()
    for case in record["cases"]:
        case["prompts"]["kl"] = case["prompts"]["kl"][:1]
        case["kl"] |= {"low": None, "high": None}
    (text, command), *_ = advice(record).steps
    assert "with 1 prompts, the nearest, sere, may have a KL from the unmodified model of any size" in text
    again = "sere eval MODEL --prompts prompts.txt --batch-size 16"
    assert command == f"{again} --setting sere --setting sere:active_experts=31"
    record["cases"] = record["cases"][::2]
    text, command = advice(record).steps[0]
    assert text.startswith(
        "sere:active_experts=12 cannot be advised: it has a KL from the unmodified model of"
    )
    assert "of 0.3, more than 0.002 nats per token." in text
    assert command == f"{again} --setting sere:active_experts=16"


def test_a_tuning_comes_first() -> None:
    """Its tier is what to serve with."""
    found = advice(evaluation(), tuning())
    assert found.steps[0][1] == """vllm serve MODEL --additional-config '{"sere": {"tier": "balanced"}}'"""
    assert found.numbers[0][0] == "40.0 → 24.0"


def test_the_time_beside_a_loss_is_of_the_same_setting() -> None:
    """Also if another one is faster; at the rows of the answers, if it was timed there."""
    mine = "sere:active_experts=24"
    times = [timing(mine, 16, 1.2), timing(mine, 32, 1.4), timing("sere:active_experts=12", 32, 2.0)]
    found = advice(evaluation(OFF, GOOD, BAD), *times)
    assert speed(found) == ("1.20×", f"as fast as off, {mine}, B=16")
    assert not any("bench" in str(command) for _, command in found.steps)
    assert speed(advice(evaluation(OFF, GOOD, BAD), *times[1:])) == (
        "1.40×", f"as fast as off, {mine}, B=32 (its loss: 16 rows)",
    )  # fmt: skip
    assert speed(advice(tuning(), timing("sere:tier=balanced", 16, 1.3), timing("sere", 16, 1.5))) == (
        "1.30×", "as fast as off, sere:tier=balanced, B=16",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        (16, "its right answers: -40.0 (-42.0 to -38.0) points"),
        (32, "its loss was not measured at these rows"),
    ],
)
def test_the_time_of_another_setting_says_so(rows: int, loss: str) -> None:
    """With what that one loses; and the advised one is to be timed."""
    found = advice(evaluation(OFF, GOOD, BAD), timing("sere:active_experts=12", rows, 2.0))
    assert speed(found) == (
        "2.00×", f"another setting: as fast as off, sere:active_experts=12, B={rows}; {loss}",
    )  # fmt: skip
    assert found.steps[-1][1] == "sere bench serve MODEL --setting sere:active_experts=24"


def test_times_of_random_weights_ask_for_answers() -> None:
    """They say nothing of what is lost."""
    subject = timing("sere", 8, 1.2)["subject"] | {"weights": "random"}
    found = advice(timing("sere", 8, 1.2, subject=subject))
    assert speed(found) == ("1.20×", "as fast as off, sere, B=8, random weights")
    assert found.steps[0] == (
        "Times of random weights say nothing of answers: measure what re-routing costs in your model",
        "sere eval MODEL --prompts prompts.txt",
    )


def test_scores_of_lm_eval_alone_have_numbers_and_advice() -> None:
    """By the same rule; the command asks in the same way."""
    found = advice(lm_eval())
    assert found.numbers == [
        ("40.0 → 30.0", "experts that a layer reads in steps of 16 rows, sere"),
        ("-20.0", "points of right answers in sums against off: -20.0 (-25.0 to -15.0)"),
    ]
    assert found.steps[0] == (
        "sere cannot be advised: it loses 20 points of right answers in sums, more than 1 point. "
        "Measure settings that read more experts",
        "sere lm-eval MODEL --tasks sums --phases decode --num-fewshot 2 --batch-size 16 "
        "--setting sere:active_experts=39",
    )
    record = lm_eval()
    record["cases"][1]["tasks"]["sums"]["metrics"]["exact_match,strict"]["difference"] = share(0.0, 0.009)
    text, command = advice(record).steps[0]
    assert text == "Use sere: its 95 % interval keeps the loss of right answers in sums within 1 point"
    assert command == """vllm serve MODEL --additional-config '{"sere": {}}'"""


def test_scores_without_right_answers_have_no_limit() -> None:
    """The difference with its unit, and how to get one that can be judged."""
    record = lm_eval()
    for case in record["cases"]:
        del case["tasks"]["sums"]
    found = advice(record)
    assert found.numbers[1] == (
        "-0.0400",
        "word_perplexity of prose against off (log-likelihood per word; below 0 is worse): "
        "-0.0400 (-0.0500 to -0.0300)",
    )
    text, command = found.steps[0]
    assert text.startswith("No task here counts right answers, so no limit says which loss to accept")
    assert command == (
        "sere lm-eval MODEL --tasks TASKS --phases decode --num-fewshot 2 --batch-size 16 --setting sere"
    )
