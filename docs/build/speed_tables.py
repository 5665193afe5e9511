"""Tables of times: calls of the operation, decoding in Transformers, calibration."""

from __future__ import annotations

from cells import conditions, counts, shapes, table, time
from records import read_lines


def reroute() -> str:
    """Microseconds per call of re-routing by the published method with one primary slot per row.

    Records of before there were other settings have S in place of a label.
    """
    published = (None, "sere:paper,select_top_k=1")
    records = [
        one
        for one in read_lines("reroute.jsonl")
        if one["config"].get("settings") in published and one["config"].get("select_top_k", 1) == 1
    ]
    rows = [
        [
            config["model"], config["E"], config["K"], config["T"], config["backend"],
            f"{record['median']:.1f}", f"{record['p20']:.1f} to {record['p80']:.1f}",
        ]
        for record in records
        for config in [record["config"]]
    ]  # fmt: skip
    headers = ["shape of", "E", "K", "rows", "backend", "median, µs", "p20 to p80"]
    return table(rows, headers) + conditions(records)


def bench() -> str:
    """Decoding at a real model's layer shape."""
    records = read_lines("bench.jsonl")
    rows = [
        [
            record["batch_size"], record["setting"], counts(record["experts"]), *time(record),
            "" if record["overhead"] is None else f"{record['overhead']['ms_per_step']:.2f}",
        ]
        for record in records
    ]  # fmt: skip
    headers = ["batch", "setting", "experts", "TPOT, ms", "faster", "overhead, ms"]
    return shapes(records) + table(rows, headers) + conditions(records)


def similarity() -> str:
    """The accumulators against plain pair loops."""
    records = read_lines("similarity.jsonl")
    rows = [
        [
            record["metric"], record["E"], record["T"], record["H"],
            f"{record['pair_loop_ms']['median']:.0f}",
            f"{record['accumulator_ms']['median']:.1f}", f"{record['ratio']:.1f}x",
            f"{record['gram_ms']['median']:.1f}", f"{record['max_abs_error']:.1e}",
        ]
        for record in records
    ]  # fmt: skip
    headers = [
        "metric", "E", "T", "H", "pair loop, ms", "accumulator, ms", "faster", "Gram only, ms",
        "difference",
    ]  # fmt: skip
    return table(rows, headers) + conditions(records)


def calibrate_large() -> str:
    """Peak resident memory of layer-by-layer calibration."""
    records = read_lines("calibrate_large.jsonl")
    rows = [
        [
            f"{record['config']['checkpoint_bytes'] / 1e9:.1f}", record["config"]["tokens"],
            f"{record['peak_rss_bytes'] / 1e9:.2f}", f"{record['seconds']:.0f}",
        ]
        for record in records
    ]  # fmt: skip
    return table(rows, ["checkpoint, GB", "tokens", "peak resident, GB", "seconds"]) + conditions(records)
