"""The same case on every processor that a record is of."""

from __future__ import annotations

from collections.abc import Mapping

from cells import table
from records import Record, mode, serve_line, serve_records, started

# Qwen3-30B-A3B's layer shape, four layers, compiled, on two threads; experts chosen by S = 2 alone.
_MODEL, _LAYERS, _MODE, _THREADS = "qwen3-30b-a3b", 4, "compiled", 2
_SETTINGS = ("sere:paper,select_top_k=2", "sere:select_top_k=2,active_experts=0")
# Records, and what their processors' names do not say.
_FILES: Mapping[str, str] = {
    "serve.jsonl": "which has bfloat16 instructions",
    "serve_emulated.jsonl": "which has none for bfloat16",
    "serve_engines.jsonl": "",
}
_MOST_ROWS = 64


def machines() -> str:
    """How many times faster than ``off``, by rows of a step and processor, and over all of them."""
    columns: dict[str, dict[int, float]] = {}
    for file, note in _FILES.items():
        for record in serve_records(file):
            if _is_the_case(record):
                name = ", ".join(filter(None, [serve_line(record)[0], note]))
                columns.setdefault(name, {})[record["batch_size"]] = record["speedup"]["p50"]
    sizes = sorted({B for found in columns.values() for B in found if 1 < B <= _MOST_ROWS})
    rows = [[B, *(_times(found.get(B)) for found in columns.values()), _range(columns, B)] for B in sizes]
    headers = ["requests", *(str(number) for number in range(1, len(columns) + 1)), "range"]
    names = "\n".join(f"- {number}: {name}" for number, name in enumerate(columns, 1))
    return f"{table(rows, headers)}\n\n{names}"


def _is_the_case(record: Record) -> bool:
    subject = record["subject"]
    return (
        record["setting"] in _SETTINGS
        and record.get("measure", "tpot") == "tpot"
        and (subject["model"], subject.get("layers"), mode(record)) == (_MODEL, _LAYERS, _MODE)
        and record["provenance"]["machine"]["threads"] == _THREADS
        and not started(record)
    )


def _times(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}x"


def _range(columns: Mapping[str, Mapping[int, float]], B: int) -> str:
    found = [column[B] for column in columns.values() if B in column]
    return f"{min(found):.2f}x to {max(found):.2f}x"
