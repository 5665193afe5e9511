"""Tables and pictures of the documents, made from records of any age."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.checkout


@pytest.mark.parametrize(
    ("recorded", "today"),
    [
        ("off", "off"),
        ("sere:S=2,min_active=32,scale=true", "sere:select_top_k=2,min_active=32,use_scale=true"),
        ("sere:S=1,rho=0.3", "sere:paper,select_top_k=1,threshold=0.3"),
        ("sere:select_top_k=1,threshold=0.3", "sere:select_top_k=1,threshold=0.3"),
        ("lynx:drop=0.6", "lynx:drop_share=0.6"),
        ("untouched", "vanilla"),
        ("oracle sere:S=1", "replay sere:paper,select_top_k=1"),
    ],
)
def test_settings_have_todays_names(build: Any, recorded: str, today: str) -> None:
    """Records of any age name a setting alike."""
    assert build("records").label(recorded) == today


def test_records_have_todays_keys(build: Any) -> None:
    """Older keys and counters are renamed wherever they are; what is current stays as it is."""
    old = {
        "case": "2 a second, untouched", "setting": "sere:S=1", "ratio_off_to_this": {"p50": 2.0},
        "own_cost": {"us_per_layer": 3.0}, "table": {"num_tokens": 5}, "subject": {"E": 8, "K": 2},
        "experts": {"before": 8, "after": 3, "moved": 0.5, "layers": [{"index": 0, "before": 8}]},
    }  # fmt: skip
    today = {
        "case": "2 per second, untouched", "setting": "sere:paper,select_top_k=1", "speedup": {"p50": 2.0},
        "overhead": {"us_per_layer": 3.0}, "table": {"calibration_tokens": 5},
        "subject": {"num_experts": 8, "top_k": 2},
        "experts": {
            "distinct_before": 8, "distinct_after": 3, "slots_rerouted": 0.5,
            "layers": [{"index": 0, "distinct_before": 8}],
        },
    }  # fmt: skip
    records = build("records")
    assert records.modernize([old]) == [today]
    assert records.modernize(today) == today
    assert records.modernize({"experts": 8.5}) == {"distinct_after": 8.5}


def test_newest_record_of_a_case_counts(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case measured again replaces the old one; other threads or another start are another case."""
    records = build("records")

    def record(threads: int, tpot: float, **config: object) -> dict[str, object]:
        return {
            "subject": {"model": "m"}, "config": {"mode": "eager"} | config, "batch_size": 8,
            "setting": "off", "provenance": {"machine": {"threads": threads}}, "tpot_ms": tpot,
        }  # fmt: skip

    floored, with_options = {"start": {"min_active": 32}}, {"engine_options": {"block_size": 32}}
    lines = [record(1, 9.0), record(2, 5.0), record(1, 8.0), record(1, 7.0, **floored)]
    lines += [record(1, 6.0, **with_options), record(1, 4.0, **floored), record(1, 3.0, start={})]
    monkeypatch.setattr(records, "read_lines", lambda _name: lines)
    assert [found["tpot_ms"] for found in records.serve_records()] == [3.0, 5.0, 4.0, 6.0]


@pytest.fixture
def plain(build: Any) -> list[Any]:
    """The committed records of engines that were started without a floor."""
    records: ModuleType = build("records")
    return [one for one in records.read_lines("serve.jsonl") if not records.started(one)]


def test_without_an_engine_with_a_floor_there_is_no_table(
    build: Any, monkeypatch: pytest.MonkeyPatch, plain: list[Any]
) -> None:
    """The document says that nothing is measured."""
    monkeypatch.setattr(build("records"), "read_lines", lambda _name: plain)
    assert build("serving_tables").serve_floor() == build("records").NOT_MEASURED


def test_engines_with_a_floor_have_a_table_and_leave_the_others_alone(
    build: Any, monkeypatch: pytest.MonkeyPatch, plain: list[Any]
) -> None:
    """Each setting is beside the off of its own engine."""
    records, serving = build("records"), build("serving_tables")
    monkeypatch.setattr(records, "read_lines", lambda _name: plain)
    before = serving.serve()

    def floored(name: str, setting: str, tpot: float) -> dict[str, object]:
        found = next(
            one for one in plain
            if (one["setting"], one["batch_size"], one["subject"]["model"], one["config"]["mode"])
            == (name, 8, "qwen3-30b-a3b", "compiled")
        )  # fmt: skip
        changes = {"setting": setting, "tpot_ms": {"p20": tpot, "p50": tpot, "p80": tpot}}
        return found | changes | {"config": found["config"] | {"start": {"min_active": 32}}}

    on, floor = "sere:paper,select_top_k=2", "sere:select_top_k=2,min_active=32"
    new = [floored("off", "off", 111.0), floored(on, floor, 44.0)]
    monkeypatch.setattr(records, "read_lines", lambda _name: [*plain, *new])
    assert serving.serve() == before
    rows = [line.split("|") for line in serving.serve_floor().splitlines() if re.match(r"\| \d", line)]
    assert [tuple(cell.strip() for cell in row[1:4]) for row in rows] == [
        ("8", "", "off"), ("8", "", "sere:paper,select_top_k=1"), ("8", "", on),
        ("8", "min_active=32", "off"), ("8", "min_active=32", floor),
    ]  # fmt: skip
    assert [row[6].strip() for row in rows[3:]] == ["111.0", "44.0"]
    assert "min_active=32" in build("pictures").serve(records.serve_records())


def test_releases_that_differ_are_told_apart_in_the_table_of_architectures(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reason is there once, with its number; a cell names releases where they differ, of those checked."""
    table = build("architecture_table")

    def release(number: str, found: str, **checks: str) -> dict[str, object]:
        entry = {"name": "one", "class": "OneForCausalLM", "checks": {"found": found} | checks}
        provenance = {
            "machine": {"cpu": "c", "cores": 1, "threads": 1, "gpu": None}, "versions": {"torch": "2"},
            "commit": "a", "clean_tree": True, "utc": "2026-01-01",
        }  # fmt: skip
        return {number: {"provenance": provenance, "architectures": [entry]}}

    refused = "refused: OneForCausalLM: Transformers 5.17.0 has none"
    records = release("5.17.0", refused) | release("5.18.0", refused.replace("5.17.0", "5.18.0"))
    records |= release("5.19.1", "works; twice", in_memory="works")
    monkeypatch.setattr(table, "read_json", lambda _name: records)
    text = table.architectures()
    (row,) = [line for line in text.splitlines() if line.startswith("| `one`")]
    cells = [cell.strip() for cell in row.split("|")[1:4]]
    assert cells == [
        "`one`", "5.17, 5.18, 5.19.1", "experts found: no (1) in 5.17, 5.18, yes (2) in 5.19.1"
    ]  # fmt: skip
    assert "1. Transformers has none\n2. twice\n" in text
