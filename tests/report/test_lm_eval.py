"""Records of ``sere lm-eval`` in a report: a table for each task, with what was re-routed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sere.report.collect import collect
from sere.report.html import Page
from sere.report.lm_eval import add_scores
from sere.report.models import ModelPart, by_model
from sere.report.read import source_of
from tests.support.records import MADE, lm_eval


def parts(*records: dict[str, Any]) -> list[ModelPart]:
    return by_model(collect([source_of(one, f"{index}.json") for index, one in enumerate(records)]))


def tables(part: ModelPart) -> dict[str, list[list[str]]]:
    """The rows of each task's table, as they are read."""
    (scores,) = part.scores.values()
    page = Page()
    add_scores(page, "About.", scores)
    found = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", page.text(), re.DOTALL)
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
    (key,) = {one.key for scores in part.scores.values() for one in scores}
    assert key.texts == (
        "lm-eval: sums, prose, at most 50 questions a task, 2 examples, log-likelihoods taken in decode "
        "steps, seed 0"
    )


def page_of(*records: dict[str, Any]) -> str:
    (part,) = parts(*records)
    (scores,) = part.scores.values()
    page = Page()
    add_scores(page, "About.", scores)
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


def test_other_questions_and_machines_are_shown_apart() -> None:
    """With a warning; the same measured again replaces what was there, and is counted."""
    record = lm_eval()
    (part,) = parts(record, record | {"plan": record["plan"] | {"limit": 100}})
    assert len(part.scores) == 2
    (said,) = part.warnings()
    assert "2 measurements of tasks of lm-eval cannot be compared" in said
    assert said.endswith("because they differ in texts.")
    other = MADE | {"machine": MADE["machine"] | {"cpu": "Other CPU"}}  # type: ignore[operator]
    (part,) = parts(record, record | {"provenance": other})
    assert part.warnings()[0].endswith("because they differ in machine.")
    (part,) = parts(record, record)
    assert "4 measurements are not shown" in part.warnings()[0]


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
    assert "Scores of tiny (aaaabbbb) with 2 settings, in steps of 16 rows: lm-eval: sums, prose" in text
    assert "<h3>Tasks of lm-eval</h3>" in text
    assert "<td>tasks of lm-eval</td>" in text
