"""The table of what it costs a vLLM engine to count the uses of each expert."""

from __future__ import annotations

from cells import conditions, shapes, table
from records import serve_records
from sere.bench.vllm.counting import counting_costs


def serve_counting() -> str:
    """Tokens per second of engines that count and of those that do not, and the ratio of their times."""
    records = serve_records("serve_counting.jsonl")
    rows = []
    for one in counting_costs(records):
        bounds = "" if one.time.low is None else f"{one.time.low:.4f} to {one.time.high:.4f}"
        rates = [f"{record['tokens_per_s']['p50']:.1f}" for record in (one.without, one.counting)]
        case = [one.counting["load"], one.counting["setting"]]
        rounds = len(one.counting["rounds_ms"])
        rows.append([*case, *rates, f"{one.time.value:.4f}", bounds, rounds])
    headers = ["load", "setting", "tokens/s", "counting", "times as long", "95 %", "rounds"]
    return shapes(records) + table(rows, headers) + conditions(records)
