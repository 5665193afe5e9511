"""Tables of times: calls of the operation, decoding in Transformers, calibration."""

from __future__ import annotations

from typing import Any

from cells import conditions, counts, over_replay, per_layer, shapes, short, table, time
from records import REPLAY, is_replay, read_lines
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


def row_budgets() -> str:
    """Microseconds of a step on the host, a column for each number of requests."""
    record = read_lines("row_budgets.jsonl")[-1]
    found: dict[str, dict[int, str]] = {}
    for case in record["cases"]:
        cell = f"{case['median']:.1f} ({case['p20']:.1f} to {case['p80']:.1f})"
        found.setdefault(case["load"], {})[case["requests"]] = cell
    requests = sorted({case["requests"] for case in record["cases"]})
    rows = [[load, *(cells.get(count, "") for count in requests)] for load, cells in found.items()]
    return table(rows, ["load", *(f"{count} requests" for count in requests)]) + conditions([record])


def bench(name: str = "bench.jsonl") -> str:
    """Decoding at a real model's layer shape; of two depths the times of the fewer layers."""
    everything = read_lines(name)
    fewest = min(one["subject"]["layers"] for one in everything)
    records = [one for one in everything if one["subject"]["layers"] == fewest]
    replays = {_case(one): one for one in records if is_replay(one)}
    complete = {
        _case(one): one["complete_model"]
        for one in everything
        if one.get("complete_model") and not is_replay(one)
    }
    rows = [
        [
            record["batch_size"], short(record["setting"]), counts(record["experts"]), *time(record),
            "" if record["overhead"] is None else f"{record['overhead']['ms_per_step']:.2f}",
            _computed(record["experts"]),
            *[per_layer(complete.get(_case(record)))] * bool(complete),
            *[over_replay(record, replays.get(_case(record)))] * bool(replays),
        ]
        for record in records if not is_replay(record)
    ]  # fmt: skip
    headers = ["batch", "setting", "experts", "TPOT, ms", "faster", "overhead, ms", "slots left"]
    headers += ["per layer"] * bool(complete) + ["vs replay"] * bool(replays)
    return shapes(records) + table(rows, headers) + conditions(everything)


def _case(record: Any) -> tuple[int, str]:
    """Return what was decoded: of a setting and its replay, and of both depths, the same."""
    return record["batch_size"], record["setting"].removeprefix(REPLAY)


def _computed(experts: Any) -> str:
    return "" if experts is None else f"{100 * experts['slots_computed']:.0f} %"


def flatten() -> str:
    """One layer's experts: milliseconds per call, and times faster than all slots of unchanged rows."""
    records = read_lines("flatten.jsonl")
    parts = []
    for kernel in dict.fromkeys(one["config"]["kernel"] for one in records):
        newest = {
            (one["config"]["T"], one["config"]["M"], one["config"]["variant"]): one
            for one in records
            if one["config"]["kernel"] == kernel
        }
        columns = list(dict.fromkeys(variant for _, _, variant in newest))
        rows = [
            [T, M, *(_call(newest.get((T, M, variant))) for variant in columns)]
            for T, M in dict.fromkeys((T, M) for T, M, _ in newest)
        ]
        heads = [variant.replace("kept, flattened", "as pairs") for variant in columns]
        parts.append(f"**{kernel}**\n\n{table(rows, ['rows', 'experts', *heads])}")
    return "\n\n".join(parts) + conditions(records)


def _call(record: Any) -> str:
    return "" if record is None else f"{record['median']:.1f} ({record['off_over_this']:.2f}x)"


def flat_steps() -> str:
    """One layer's experts on re-routed steps: what pairs gain, and how often they are chosen."""
    newest = {
        tuple(map(one["config"].get, ("T", "M", "min_gain"))): one for one in read_lines("flat_steps.jsonl")
    }
    rows = [
        [
            T, f"{M} ({one['config']['which']})", gain, f"{100 * one['pairs_share']:.0f} %",
            f"{one['slots_ms']['median']:.1f}", f"{one['pairs_ms']['median']:.1f}",
            f"{one['faster']['median']:.2f}x ({one['faster']['p20']:.2f} to {one['faster']['p80']:.2f})",
            f"{100 * one['auto_share']:.0f} %",
        ]
        for (T, M, gain), one in newest.items()
    ]  # fmt: skip
    headers = ["rows", "M", "τ", "pairs", "all slots, ms", "pairs, ms", "pairs are faster", "chosen"]
    return table(rows, headers) + conditions(list(newest.values()))


def flat_bits() -> str:
    """Where pairs give the bits of all slots, by expert kernel, dtype and kind of row."""
    newest = {
        (one["config"]["kernel"], one["config"]["dtype"], one["config"]["rows"]): one
        for one in read_lines("flat_bits.jsonl")
    }
    kinds = list(dict.fromkeys(kind for _, _, kind in newest))
    cases = dict.fromkeys((kernel, dtype) for kernel, dtype, _ in newest)
    rows = [[*case, *(_bits(newest.get((*case, kind))) for kind in kinds)] for case in cases]
    return table(rows, ["experts", "dtype", *kinds]) + conditions(list(newest.values()))


def _bits(record: Any) -> str:
    if record is None:
        return ""
    equal, rows = record["equal_rows"], record["rows"]
    return "equal" if equal == rows else f"{equal} of {rows} equal; {record['largest_eps']:.1f} ε"


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


def calibrate_float32() -> str:
    """Time of one layer's experts in bfloat16 and in float32, on CPUs that emulate bfloat16."""
    records = read_lines("calibrate_float32.jsonl")
    rows = [
        [
            one["preset"], one["tokens"],
            *(f"{one['seconds'][dtype]['p50']:.1f}" for dtype in ("bfloat16", "float32")),
            f"{one['ratio']['value']:.1f}x",
            f"{100 * one['relative_difference']:.2f} %",
        ]
        for one in records
    ]  # fmt: skip
    headers = ["shape", "tokens", "bfloat16, s", "float32, s", "faster", "outputs differ by"]
    return table(rows, headers) + conditions(records)
