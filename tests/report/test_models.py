"""What is compared, and what is shown apart."""

from __future__ import annotations

from typing import Any

from sere.report.collect import collect
from sere.report.models import ModelPart, by_model
from sere.report.read import source_of
from tests.support.records import MADE, PLAN, answers, evaluation, timing, tuning


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
