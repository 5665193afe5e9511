"""Tables of times: calls of the operation, decoding in Transformers, calibration."""

from __future__ import annotations

from typing import Any

from cells import conditions, counts, shapes, short, table, time
from records import read_lines
from sere.bench.shapes import SHAPES


def reroute() -> str:
    """Microseconds per call of re-routing, a column for each setting."""
    records = read_lines("reroute.jsonl")
    columns = list(dict.fromkeys(one["config"]["settings"] for one in records))
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for one in records:
        config = one["config"]
        case = tuple(config[name] for name in ("model", "E", "K", "T", "backend"))
        cells.setdefault(case, {})[config["settings"]] = f"{one['median']:.1f}"
    rows = [[*case, *map(found.get, columns)] for case, found in cells.items()]
    headers = ["shape of", "E", "K", "rows", "backend", *columns]
    return table(rows, headers) + conditions(records)


def bench(name: str = "bench.jsonl") -> str:
    """Decoding at a real model's layer shape."""
    records = read_lines(name)
    rows = [
        [
            record["batch_size"], short(record["setting"]), counts(record["experts"]), *time(record),
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


def calibrate_in_vllm() -> str:
    """Memory and time of calibration within vLLM."""
    records = read_lines("calibrate_in_vllm.jsonl")
    rows = [
        [
            config["preset"], config["layers"], config["tokens"], f"{record['peak_bytes'] / 1e9:.1f}",
            f"{record['seconds']:.0f}", f"{seconds * SHAPES[config['preset']].layers / 3600:.1f}",
        ]
        for record in records
        if record["complete"]
        for config, seconds in [(record["config"], record["seconds_per_layer"])]
    ]  # fmt: skip
    headers = ["shape", "layers", "tokens", "peak, GB", "seconds", "all layers, hours"]
    return table(rows, headers) + conditions(records)
