"""Tables and pictures of the documents, made from records of any age."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sere.report.former import label
from tests.support.records import engine_record

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
def test_settings_have_todays_names(recorded: str, today: str) -> None:
    """Records of any age name a setting alike."""
    assert label(recorded) == today


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
            "setting": "off", "provenance": {"machine": {"cpu": "c", "threads": threads}}, "tpot_ms": tpot,
        }  # fmt: skip

    floored, with_options = {"start": {"min_active": 32}}, {"engine_options": {"block_size": 32}}
    lines = [record(1, 9.0), record(2, 5.0), record(1, 8.0), record(1, 7.0, **floored)]
    lines += [record(1, 6.0, **with_options), record(1, 4.0, **floored), record(1, 3.0, start={})]
    monkeypatch.setattr(records, "read_lines", lambda _name: lines)
    assert [found["tpot_ms"] for found in records.serve_records()] == [3.0, 5.0, 4.0, 6.0]


def test_two_depths_are_one_row(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has the shallower model's time, and beside it what both depths say of the complete model.

    The replay's time is in the row of its setting.
    """
    ratio = {"p50": 1.7}
    deeper = {"subject": {"model": "m", "layers": 8}, "tpot_ms": {"p50": 80.0}}
    complete = {"speedup_per_layer": {"p50": 1.8}, "speedup": ratio}
    lines = [
        engine_record("sere", flattening={"slots": 64, "pairs": 48}),
        engine_record("replay sere", tpot_ms={"p50": 38.0}),
        engine_record("sere", **deeper, complete_model=complete),
        engine_record("sere", load="ttft-2k", measure="ttft", time_ms={"p50": 900.0}),
    ]  # fmt: skip
    serving = build("serving_tables")
    monkeypatch.setattr(build("records"), "read_lines", lambda _name: lines)
    (row,) = [
        line.split("|")[1:-1] for line in serving.serve_engines().splitlines() if line.startswith("| 8")
    ]
    assert [cell.strip() for cell in row] == [
        "8", "sere", "51.0 → 26.0", "75 %", "40.0", "1.50x", "1.500x", "1.80x", "+5.3 %",
    ]  # fmt: skip
    (row,) = [
        line.split("|")[1:-1] for line in serving.serve_loads().splitlines() if line.startswith("| ttft")
    ]
    assert [cell.strip() for cell in row] == ["ttft-2k", "sere", "first token", "900.0", "1.50x", "1.500x"]


def test_processors_have_tables_of_their_own(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of two processors of one name are not in one table, and neither replaces the other's."""
    one = engine_record("sere")
    other = engine_record("sere", provenance=one["provenance"] | {
        "machine": one["provenance"]["machine"] | {"instructions": ["avx512_bf16"]}
    })  # fmt: skip
    monkeypatch.setattr(build("records"), "read_lines", lambda _name: [one, other])
    text = build("serving_tables").serve_engines()
    assert re.findall(r"\*\*(.*): m", text) == [
        "AMD EPYC family 26", "AMD EPYC family 26 (avx512_bf16)",
    ]  # fmt: skip


def test_one_case_on_each_processor(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column for each processor and file, other cases left out, and the range over all columns."""
    tables = build("machine_tables")
    subject = {"subject": {"model": "qwen3-30b-a3b", "layers": 4}}
    paper, today = "sere:paper,select_top_k=2", "sere:select_top_k=2,active_experts=0"
    deeper = {"subject": {"model": "qwen3-30b-a3b", "layers": 8}}
    files = {
        "serve.jsonl": [engine_record(paper, **subject), engine_record("sere", **subject)],
        "serve_emulated.jsonl": [
            engine_record(paper, **subject, speedup={"p50": 1.2}),
            engine_record(paper, **subject, batch_size=16, load="B=16"),
        ],
        "serve_engines.jsonl": [engine_record(today, **deeper), engine_record(today, **subject)],
    }
    monkeypatch.setattr(build("records"), "read_lines", files.__getitem__)
    text = tables.machines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:4]]
    assert rows == [
        ["8", "1.50x", "1.20x", "1.50x", "1.20x to 1.50x"],
        ["16", "", "1.50x", "", "1.50x to 1.50x"],
    ]
    assert "- 2: AMD EPYC family 26, which has none for bfloat16" in text


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


def test_predicted_times_have_a_row_for_each_machine(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one processor, threads and dtype have one number; cells are of measured machines alone."""
    tables = build("step_time_table")
    cell = {
        "rows": 8, "setting": "sere", "experts_before": 50.0, "experts_after": 26.0,
        "measured_ratio": 1.5, "predicted_ratio": 1.65, "error": 0.1,
    }  # fmt: skip
    group = {
        "processor": "AMD", "threads": 2, "dtype": "bfloat16", "model": "m", "mode": "eager",
        "layers": 4, "file": "serve.jsonl", "ceilings": {"bytes_per_s": 2e10, "flops_per_s": 3e11},
        "cells": [cell], "cells_compared": 1,
        "median_error": 0.1, "largest_error": 0.1, "measured": True,
    }  # fmt: skip
    machine = {"cpu": "AMD", "cores": 2, "threads": 2, "gpu": None}
    made = {
        "machine": machine,
        "versions": {"torch": "2"},
        "commit": "a",
        "clean_tree": True,
        "utc": "2026-11-28",
    }
    other = group | {"threads": 1, "measured": False}
    record = {"groups": [group, other, group | {"mode": "compiled"}], "provenance": made}
    monkeypatch.setattr(tables, "read_json", lambda _: record)
    rows = [line.split("|")[1].strip() for line in tables.step_time().splitlines() if line.startswith("| ")]
    assert rows == ["no.", "1", "2", "1"]
    assert tables.step_time_machines() == "- 1: AMD, 2 threads\n- 2: AMD, 1 thread"
    cells = tables.step_time_cells().splitlines()
    assert len(cells) == 4
    assert "1.50x" in cells[2]
    assert "+10 %" in cells[2]


def test_viewers_are_compared_round_by_round(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest record counts; each number of viewers has its median ratio to none, with an interval."""
    table = build("viewer_table")
    made = engine_record("off")["provenance"]
    rates = {"0": [100.0, 50.0, 80.0] * 2, "20": [98.0, 49.0, 80.0] * 2, "1": [99.0, 49.5, 79.2] * 2}
    newest = {"tokens_per_s": rates, "provenance": made}
    lines = [{"tokens_per_s": {"0": [1.0]}}, newest]
    monkeypatch.setattr(table, "read_lines", lambda _name: lines)

    def cells() -> list[list[str]]:
        shown = [line for line in table.viewers().splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown]

    head, _, *rows = cells()
    assert head[1] == "tokens/s, median of 6 rounds"
    assert rows == [
        ["0", "80.0", "", ""],
        ["1", "79.2", "0.9900", "0.9900 to 0.9900"],
        ["20", "80.0", "0.9800", "0.9800 to 1.0000"],
    ]
    newest["processor_s_per_s"] = {"0": [0.01] * 6, "1": [0.015] * 6, "20": [0.03] * 6}
    head, _, *rows = cells()
    assert head[-2:] == ["% of a core", "95 %"]
    assert [row[-2:] for row in rows] == [["", ""], ["0.50", "0.50 to 0.50"], ["2.00", "2.00 to 2.00"]]
    newest |= {
        "answers": {"0": [0] * 6, "1": [6] * 6, "20": [118] * 6},
        "viewers_processor_s_per_s": {"0": [0.0] * 6, "1": [0.001] * 6, "20": [0.0125] * 6},
    }
    said = "20 viewers had 118 answers (median of the rounds), and their own process took 1.2 % of a core."
    assert said in table.viewers()
    newest["question_ms"] = [2.0, 3.0, 13.4]
    said = "took 3.0 ms (median of 3, one after the other; the longest 13 ms)"
    assert said in table.viewers()
    assert "ask one a second: at most 0.30 % of the engine's time." in table.viewers()
    newest |= {"answer_ms": [0.21, 0.25, 0.41], "answer_others_ms": [0.001, 0.002, 0.05]}
    head, _, *rows = cells()
    assert (head[-1], [row[-1] for row in rows]) == ("answers", ["", "0.03", "0.50"])
    assert [row[-3:-1] for row in rows] == [["", ""], ["0.50", "0.50 to 0.50"], ["2.00", "2.00 to 2.00"]]
    said = " ".join(table.viewers().split())
    assert "An answer took 0.250 ms of its processor time (median of 3 batches, 0.210 to 0.410; one" in said
    assert "without requests), and 0.002 ms of the server's other processes." in said


def test_engines_are_compared_with_vanilla_beyond_their_spread(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slower, or faster, is what is so by over 1 % even at the far end of its spread."""

    def ratio(low: float, high: float) -> dict[str, float]:
        return {"p20": low, "p50": (low + high) / 2, "p80": high}

    engines = [
        engine_record("off", load="B=1", speedup_over_vanilla=ratio(0.9, 0.989)),
        engine_record("off", load="B=8", speedup_over_vanilla=ratio(0.8, 0.991)),
        engine_record("off", load="B=9", speedup_over_vanilla=ratio(1.011, 1.2)),
        engine_record("sere", speedup_over_vanilla=ratio(1.009, 2.0)), engine_record("replay sere"),
        engine_record("vanilla", speedup_over_vanilla=ratio(0.5, 0.5)),
    ]  # fmt: skip
    same_process = [engine_record("vanilla", speedup=ratio(1.02, 1.03)), engine_record("off")]
    files = {
        "serve_engines.jsonl": engines[:3],
        "serve_gain.jsonl": [engines[3]],
        "serve.jsonl": same_process,
    }
    files |= {"serve_share.jsonl": [engines[4]], "serve_presets.jsonl": [engines[5]], "serve_avx2.jsonl": []}
    monkeypatch.setattr(build("records"), "read_lines", files.__getitem__)
    lines = [line for line in build("serving_tables").than_vanilla().splitlines() if ", " in line]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells == [
        ["off, a process each", "3", "1", "1", "B=8: 0.895x (0.800x to 0.991x)"],
        ["re-routing, a process each", "1", "0", "0", "B=8: 1.504x (1.009x to 2.000x)"],
        ["off, one process", "1", "1", "0", "B=8: 0.976x (0.971x to 0.980x)"],
    ]
