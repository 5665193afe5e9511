"""The table and the picture of all rules, made from records of both test beds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sere.eval.statistics.by_question import paired_difference, wilson

pytestmark = pytest.mark.checkout


def case(setting: str, experts: float, marks: str) -> dict[str, Any]:
    """Return a case with marks over all tasks."""
    share = wilson(marks.count("1"), len(marks))
    result = {"n": len(marks), "marks": marks, "share": vars_of(share)}
    if setting != "off":
        result["difference"] = vars_of(paired_difference([mark == "1" for mark in marks], [True] * 4))
    counted = {"distinct_before": 9.0, "distinct_after": experts}
    return {"setting": setting, "batch_size": 16, "experts": counted, "tasks": {"all": result}}


def vars_of(interval: Any) -> dict[str, float]:
    return {name: getattr(interval, name) for name in ("value", "low", "high")}


@pytest.fixture
def record() -> dict[str, Any]:
    """A record of two numbers of experts, with rivals that leave about as many."""
    cases = [
        case("off", 9.0, "1111"), case("drop:active_experts=6", 6.0, "0110"),
        case("sere:active_experts=6", 6.0, "0111"), case("sere:paper,select_top_k=1", 2.5, "1000"),
        case("sere:active_experts=3", 3.0, "1100"), case("budget:budget=3", 2.8, "1110"),
        case("budget:budget=3,mode=truncate", 2.9, "1010"), case("oea:select_top_k=3", 4.6, "1111"),
    ]  # fmt: skip
    machine = {"cpu": "c", "gpu": None, "cores": 1, "threads": 1, "bound_to": None}
    made = {
        "machine": machine,
        "versions": {"torch": "2"},
        "commit": None,
        "clean_tree": True,
        "utc": "2026-01-01",
    }
    return {"model": {"num_experts": 9, "top_k": 2}, "provenance": made, "cases": cases}


@pytest.fixture
def tables(build: Any, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]) -> Any:
    """The module of the table, with this record for one bed."""
    tables = build("rule_tables")
    monkeypatch.setattr(tables, "beds", lambda: {"abacus": record})
    return tables


def test_rules_stand_below_sere_with_about_as_many_experts(tables: Any) -> None:
    """SERE is first in each table; a rule is where its experts are nearest, on the same questions."""
    blocks = tables.rules().split("\n\n")
    assert blocks[0] == "**abacus** (E=9, K=2), B=16, off: 9.0 experts, 100.0 % right of 4"
    names = [[line.split("|")[1].strip() for line in block.splitlines()[2:]] for block in blocks[1:3]]
    assert names == [
        [
            "sere:active_experts=3", "sere:paper,select_top_k=1", "budget:budget=3",
            "budget:budget=3,mode=truncate",
        ],
        ["sere:active_experts=6", "drop:active_experts=6", "oea:select_top_k=3"],
    ]  # fmt: skip
    last = [[line.split("|")[-2].strip() for line in block.splitlines()[2:]] for block in blocks[1:3]]
    assert [[cell.partition(" ")[0] for cell in column] for column in last] == [
        ["", "-25.0", "+25.0", "+0.0"],
        ["", "-25.0", "+25.0"],
    ]


def test_the_picture_has_a_marker_for_each_rule_and_a_side_for_each_bed(build: Any, record: Any) -> None:
    """Settings of one rule share a name, but not its modes nor its preset; both beds are there."""
    drawn = build("pictures").rules({"abacus": record, "suanpan": record})
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert [texts.count(f"{bed}, batch size 16") for bed in ("abacus", "suanpan")] == [1, 1]
    rules = {"off", "sere", "sere, paper", "drop", "budget", "budget, mode=truncate", "oea"}
    assert {text for text in texts if text in rules} == rules
    assert all(texts.count(rule) == 1 for rule in rules)


def test_without_records_nothing_is_said_to_be_measured(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing record leaves a line in the document, not an error."""
    monkeypatch.setattr(tables, "beds", dict)
    assert tables.rules() == "*Not measured yet.*"


def test_a_later_run_of_the_same_questions_adds_its_cases(
    build: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: dict[str, Any]
) -> None:
    """Its own off is left out; if that has other answers, nothing can be paired, and the build stops."""
    tables = build("rule_tables")
    monkeypatch.setattr(tables, "BEDS", {"abacus": "bed.json"})
    for module in (tables, build("records")):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    later = record | {"cases": [record["cases"][0], case("topp:p=0.5", 4.0, "0101")]}
    (tmp_path / "bed.json").write_text(json.dumps(record))
    (tmp_path / "bed-more.json").write_text(json.dumps(later))
    found = tables.beds()["abacus"]["cases"]
    assert [one["setting"] for one in found] == [*(one["setting"] for one in record["cases"]), "topp:p=0.5"]
    (tmp_path / "bed-more.json").write_text(json.dumps(record | {"cases": [case("off", 9.0, "1110")]}))
    with pytest.raises(ValueError, match=r"bed-more\.json: off has other answers than in bed\.json"):
        tables.beds()
