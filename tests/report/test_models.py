"""What is compared, what is shown apart, and what a reader is told to do."""

from __future__ import annotations

from typing import Any

from sere.report.advice import ACCEPTED_KL, advise
from sere.report.collect import collect
from sere.report.models import ModelPart, by_model
from sere.report.read import source_of
from sere.tune.plan import TIERS
from tests.support.records import MADE, PLAN, answers, divergences, evaluation, timing, tuning


def parts(*records: dict[str, Any]) -> list[ModelPart]:
    return by_model(collect([source_of(record, f"{index}.json") for index, record in enumerate(records)]))


def test_equal_conditions_are_one_picture() -> None:
    """Two records of the same model, texts, machine and engine are compared, without a warning."""
    (part,) = parts(evaluation(), evaluation(answers("sere:active_experts=30", 30.0, 0.9)))
    (cases,) = part.answers.values()
    assert len(cases) == 5
    assert part.warnings() == []


def test_other_texts_machines_and_engines_are_shown_apart() -> None:
    """Each with the reason in the warning."""
    machine = MADE | {"machine": MADE["machine"] | {"cpu": "Other CPU"}}  # type: ignore[operator]
    (part,) = parts(evaluation(), evaluation(provenance=machine))
    assert len(part.answers) == 2
    assert "2 measurements of right answers cannot be compared" in part.warnings()[0]
    assert part.warnings()[0].endswith("because they differ in machine.")
    (part,) = parts(evaluation(), evaluation(plan=PLAN | {"questions_digest": "other"}))
    assert part.warnings()[0].endswith("because they differ in texts.")
    (part,) = parts(
        timing("sere", 8, 1.2), timing("sere", 8, 1.3, config={"prompt": 32, "steps": 16, "mode": "compiled"})
    )
    assert part.warnings()[0].endswith("because they differ in engine.")


def test_other_models_have_parts_of_their_own() -> None:
    """Another name; and the same name with other weights is said."""
    model = evaluation()["model"]
    assert [part.name for part in parts(evaluation(), evaluation(model=model | {"name": "big"}))] == [
        "tiny",
        "big",
    ]
    (part,) = parts(evaluation(), evaluation(model=model | {"digest": "ddddeeee"}))
    assert len(part.answers) == 2
    assert any("different models of this name" in warning for warning in part.warnings())


def test_another_table_is_named() -> None:
    """Records that a given table did not make are shown, with a warning."""
    from tests.support.tables import table

    (part,) = parts(evaluation())
    part.tables.append(("mine.sere", table()))
    assert any("measured with other tables (12345678)" in warning for warning in part.warnings())


def test_of_a_case_that_came_twice_the_later_one_counts() -> None:
    """As in a file to which a run was appended."""
    (part,) = parts(timing("sere", 8, 1.2), timing("sere", 8, 1.5))
    (cases,) = part.times.values()
    assert [case.speedup and case.speedup["p50"] for case in cases] == [1.5]
    (said,) = part.warnings()
    assert "1 measurements are not shown, because the same was measured again" in said


def test_of_two_tunings_the_newest_is_shown_and_the_other_named() -> None:
    """Nobody takes one's tiers for those of both."""
    (part,) = parts(tuning(), tuning())
    (said,) = part.warnings()
    assert said.endswith("of 2 tunings only 1.json is shown; not shown: 0.json.")


def test_the_fewest_experts_without_a_visible_loss_are_advised() -> None:
    """The setting whose interval contains 0; how to serve with it; and what the questions cannot tell."""
    advice = advise(parts(evaluation())[0])
    assert advice.numbers[0][0] == "40.0 → 24.0"
    (text, command), (more, _), *others = advice.steps
    assert text.startswith("Use sere:active_experts=24")
    assert command == """vllm serve MODEL --additional-config '{"sere": {"active_experts": 24}}'"""
    assert "losses below 2.0 points cannot be told from none" in more
    assert [command for _, command in others] == [
        "sere tune MODEL --prompts prompts.txt",
        "sere bench serve MODEL --setting sere:active_experts=24",
    ]


def test_where_every_setting_loses_none_is_advised() -> None:
    """The nearest is named, with more experts to try."""
    advice = advise(parts(evaluation(answers("off", 40, 0.9), answers("sere:active_experts=12", 12, 0.5)))[0])
    assert advice.steps[0][0].startswith("No setting of sere that was measured is without a visible loss")
    assert advice.steps[0][1] == "sere eval MODEL --batch-size 16 --setting sere:active_experts=16"


def test_a_divergence_is_judged_by_the_balanced_tier() -> None:
    """What is accepted is what the tier accepts."""
    assert TIERS["balanced"].value == ACCEPTED_KL
    assert advise(parts(divergences())[0]).steps[0][0].startswith("Use sere: of those measured")


def test_a_tuning_comes_first() -> None:
    """Its tier is what to serve with."""
    advice = advise(parts(evaluation(), tuning())[0])
    assert advice.steps[0][1] == """vllm serve MODEL --additional-config '{"sere": {"tier": "balanced"}}'"""
    assert advice.numbers[0][0] == "40.0 → 24.0"


def test_times_of_random_weights_ask_for_answers() -> None:
    """They say nothing of what is lost."""
    subject = timing("sere", 8, 1.2)["subject"] | {"weights": "random"}
    advice = advise(parts(timing("sere", 8, 1.2, subject=subject))[0])
    assert advice.steps[0] == (
        "Times of random weights say nothing of answers: measure what re-routing costs in your model",
        "sere eval MODEL --prompts prompts.txt",
    )
