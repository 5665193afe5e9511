"""Records of ``sere lm-eval`` in a report: a table for each task, with what was re-routed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sere.report.collect import collect
from sere.report.html import Page
from sere.report.lm_eval import add_scores, by_run
from sere.report.models import ModelPart, by_model
from sere.report.read import source_of
from tests.support.records import MADE, lm_eval


def parts(*records: dict[str, Any]) -> list[ModelPart]:
    return by_model(collect([source_of(one, f"{index}.json") for index, one in enumerate(records)]))


def tables(part: ModelPart) -> dict[str, list[list[str]]]:
    """The rows of each task's table, as they are read."""
    (groups,) = by_run(part.scores).values()
    page = Page()
    add_scores(page, "About.", groups)
    found = re.findall(
        r"<summary>(.*?)</summary>(.*?)</details>", page.text().replace("<wbr>", ""), re.DOTALL
    )
    return {
        title: [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)[1:]]
        for title, text in found
    }


def test_each_task_has_a_table() -> None:
    """Rows are settings, off first: the value, its loss on the same questions, experts, re-routed slots."""
    (part,) = parts(lm_eval())
    assert tables(part) == {
        "sums, 50 questions": [
            ["exact_match,strict", "16", "off", "80.0 (75.0 to 85.0)", "–", "40.0 &gt; 40.0", "0", "–",
             "0.json"],
            ["exact_match,strict", "16", "sere", "60.0 (55.0 to 65.0)", "-20.0 (-25.0 to -15.0)",
             "40.0 &gt; 30.0", "25", "–", "0.json"],
        ],
        "prose, 8 questions": [
            ["word_perplexity", "16", "off", "8.2500", "–", "40.0 &gt; 40.0", "0", "–", "0.json"],
            ["word_perplexity", "16", "sere", "8.6000", "-0.0400 (-0.0500 to -0.0300)", "40.0 &gt; 30.0",
             "25", "–", "0.json"],
        ],
    }  # fmt: skip
    steps = "log-likelihoods taken in decode steps"
    asked = f"lm-eval 0.4.13, at most 50 questions per task, 2 examples, {steps}, seed 0"
    assert [(task, key.texts) for task, key in part.scores] == [
        ("sums", f"sums of version 1.0, 50 questions (5ca1ab1e), {asked}"),
        ("prose", f"prose of version 1.0, 8 questions (5ca1ab1e), {asked}"),
    ]
    assert [run.texts for run in by_run(part.scores)] == [asked]


def page_of(*records: dict[str, Any]) -> str:
    (part,) = parts(*records)
    (groups,) = by_run(part.scores).values()
    page = Page()
    add_scores(page, "About.", groups)
    return page.text()


def test_a_difference_has_a_unit_and_a_direction() -> None:
    """Where more of the value is worse, but less of what the difference is made of; once for each metric."""
    text = page_of(lm_eval())
    said = "<p>word_perplexity, against off: log-likelihood per word; below 0 is worse.</p>"
    assert text.count(said) == text.count("against off: ") == 1
    record = lm_eval()
    for case in record["cases"]:
        case["tasks"]["prose"]["metrics"]["word_perplexity,none"]["difference"] = None
    assert "against off: " not in page_of(record)


def test_settings_with_other_tables_are_told_apart() -> None:
    """By a column that is there only where tables differ."""
    first, second = lm_eval(), lm_eval() | {"table": {"metric": "cka", "fingerprint": "ffffeeeedddd"}}
    assert ">table</th>" not in page_of(first)
    assert ">table</th>" in page_of(first, second)
    (part,) = parts(first, second)
    rows = [row for row in tables(part)["sums, 50 questions"] if row[2] == "sere"]
    assert len(rows) == 2
    assert len({row[3] for row in rows}) == 2
    assert ["ffffeeee" in row[3] for row in rows] == [False, True]
    assert rows[0][4:-1] == rows[1][4:-1]


def test_what_re_routed_nothing_says_why() -> None:
    """No step was counted and lm-eval reports no value: dashes, and the reason."""
    record = lm_eval()
    seen = {"experts": dict.fromkeys(("distinct_before", "distinct_after", "slots_rerouted")),
            "nothing_changed": "nothing was re-routed: because"}  # fmt: skip
    case = record["cases"][1] | {"requests": {"generate_until": seen, "loglikelihood_rolling": seen}}
    case["tasks"]["sums"]["metrics"]["exact_match,strict"] |= {"value": None, "difference": None}
    (part,) = parts(record | {"cases": [record["cases"][0], case]})
    assert tables(part)["sums, 50 questions"][1][3:] == [
        "–", "–", "–", "–", "nothing was re-routed: because", "0.json",
    ]  # fmt: skip


def test_other_machines_are_shown_apart() -> None:
    """With a warning; the same measured again replaces what was there, and is counted."""
    record = lm_eval()
    other = MADE | {"machine": MADE["machine"] | {"cpu": "Other CPU"}}  # type: ignore[operator]
    (part,) = parts(record, record | {"provenance": other})
    assert part.warnings() == [
        "tiny: 2 measurements each of sums (lm-eval), prose (lm-eval) cannot be compared and are shown "
        "apart, because they differ in machine."
    ]
    (part,) = parts(record, record)
    assert "4 measurements are not shown" in part.warnings()[0]


def without(record: dict[str, Any], *names: str) -> dict[str, Any]:
    """A record without these entries of its tasks and its plan: an earlier one."""
    for part in (record["plan"], *(task for case in record["cases"] for task in case["tasks"].values())):
        for name in names:
            part.pop(name, None)
    return record


def test_a_task_is_compared_whichever_other_tasks_were_asked() -> None:
    """In one table, in one section, and in any order of the tasks."""
    record, alone = lm_eval(), lm_eval()
    alone["plan"]["tasks"] = ["sums"]
    alone["cases"] = alone["cases"][1:]
    for case in alone["cases"]:
        del case["tasks"]["prose"]
        case["setting"] = "sere:active_experts=30"
    (part,) = parts(record, alone)
    assert part.warnings() == []
    assert [row[2] for row in tables(part)["sums, 50 questions"]] == [
        "off", "sere", "sere:active_experts=30",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("plan", {"lm_eval": "0.4.14"}),
        ("plan", {"limit": 100}),
        ("plan", {"num_fewshot": 5}),
        ("plan", {"phases": "prefill"}),
        ("plan", {"chat_template": True}),
        ("plan", {"seed": 1}),
        ("task", {"n": 49}),
        ("task", {"version": 2.0}),
        ("task", {"questions_digest": "0ddba11"}),
    ],
)
def test_a_task_that_was_asked_otherwise_is_shown_apart(where: str, change: dict[str, Any]) -> None:
    """With a warning, and not replaced by the later one."""
    record, other = lm_eval(), lm_eval()
    if where == "plan":
        other["plan"] |= change
    else:
        for case in other["cases"]:
            case["tasks"]["sums"] |= change
    (part,) = parts(record, other)
    said, *_ = part.warnings()
    assert "sums (lm-eval)" in said
    assert said.endswith(
        "cannot be compared and are shown apart, because they differ in questions, or how they were asked."
    )
    assert [len(scores) for (task, _), scores in part.scores.items() if task == "sums"] == [2, 2]
    if where == "task":
        assert len([title for title in tables(part) if title.startswith("sums of version")]) == 2


def test_earlier_records_are_read() -> None:
    """Which name neither lm-eval's version nor the task's, and have no digest of its questions."""
    (part,) = parts(without(lm_eval(), "lm_eval", "version", "questions_digest"))
    assert [key.texts.partition(", at most")[0] for _, key in part.scores] == [
        "sums, 50 questions, lm-eval of an unknown version",
        "prose, 8 questions, lm-eval of an unknown version",
    ]


def test_names_are_text() -> None:
    """Whoever wrote a task writes no markup into the page."""
    record = lm_eval()
    for case in record["cases"]:
        case["tasks"] = {"<img src=x>": case["tasks"]["sums"]}
    (part,) = parts(record)
    assert list(tables(part)) == ["&lt;img src=x&gt;, 50 questions"]


def test_a_page_has_them() -> None:
    """The first screen says what was scored, and names where the numbers come from."""
    pytest.importorskip("plotly", reason="needs plotly, the extra report")
    from sere.report.page import render

    text = render([source_of(lm_eval(), "one.json")])
    assert "Scores of tiny (aaaabbbb) in sums, prose with 2 settings, in steps of 16 rows: lm-eval 0" in text
    assert "<dd>-20.0</dd>" in text
    assert "<h3>Tasks of lm-eval</h3>" in text
    assert "<td>tasks of lm-eval</td>" in text
