"""The committed records, read with today's names: older ones name the same things differently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.bench.replay import REPLAY
from sere.provenance import describe_processor
from sere.report.former import modernize

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

__all__ = ["REPLAY", "modernize"]  # for the other modules here

NOT_MEASURED = "*Not measured yet.*"

# The setting that README.md recommends, for the bundled model.
RECOMMENDED = "sere"

Record = Mapping[str, Any]


def read_json(name: str) -> Any:
    """Return a record that is a file of its own."""
    return modernize(json.loads((RESULTS / name).read_text(encoding="utf-8")))


def read_lines(name: str) -> list[Any]:
    """Return the records of a file of JSON lines."""
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return [modernize(json.loads(line)) for line in lines]


def is_replay(record: Record) -> bool:
    """Return whether recorded ids and pairs ran."""
    return str(record["setting"]).startswith(REPLAY)


def recommended_cases(record: Record) -> dict[int, tuple[Record, Record]]:
    """Return by batch size the demo's baseline and its case of the recommended setting."""
    found: dict[int, dict[str, Record]] = {}
    for case in record["cases"]:
        found.setdefault(case["batch_size"], {})[case["setting"]] = case
    return {batch: (cases["off"], cases[RECOMMENDED]) for batch, cases in found.items()}


def serve_records(name: str = "serve.jsonl") -> list[Any]:
    """Return the newest record of each case, in the order in which the cases first came."""
    newest = {
        (serve_line(one), started(one), one["subject"].get("layers"), one["setting"]): one
        for one in read_lines(name)
    }
    return list(newest.values())


def started(record: Record) -> str:
    """Return what a served record's engine was started with, other than select_top_k, threshold and table."""
    return ", ".join(f"{name}={value}" for name, value in record["config"].get("start", {}).items())


def serve_line(record: Record) -> tuple[Any, ...]:
    """Return which records of an engine belong together: processor, model, mode, threads, load."""
    machine = record["provenance"]["machine"]
    load = record.get("load", record["batch_size"])
    return describe_processor(machine), record["subject"]["model"], mode(record), machine["threads"], load


def mode(record: Record) -> str:
    """Return how an engine ran, as far as it is not what all did: in bfloat16, without options of vLLM."""
    dtype, config = record["subject"].get("dtype", "bfloat16"), record["config"]
    given = [f"{name}={value}" for name, value in config.get("engine_options", {}).items()]
    return ", ".join([config["mode"], *([] if dtype == "bfloat16" else [dtype]), *given])
