"""Tables of vLLM: engines of one process, servers under load, and what became of a load test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import conditions, counts, grouped, over_replay, per_layer, shapes, short, table, time
from records import (
    REPLAY,
    Record,
    is_replay,
    mode,
    read_json,
    read_lines,
    serve_line,
    serve_records,
    started,
)
from sere.outlook.calibration import chance

# Records of trained models, decoding without re-routing.
_TRAINED = {"bundled": "demo.json", "second model": "frontier-suanpan.json"}
_FEWEST_ROWS = 8

# Slower or faster than vanilla is an engine whose ratio is beyond this even at the 80th or 20th percentile.
_SLOWER, _FASTER = 0.99, 1.01
# Engines in processes of their own, one of which never loaded sere.
_WITH_VANILLA = (
    "serve_engines.jsonl",
    "serve_gain.jsonl",
    "serve_share.jsonl",
    "serve_avx2.jsonl",
    "serve_presets.jsonl",
)

_MEASURES = {"ttft": "first token", "total": "all requests"}


def serve(name: str = "serve.jsonl") -> str:
    """A vLLM engine at real models' layer shapes, a table per engine; not those with a floor."""
    records = [record for record in serve_records(name) if not started(record)]
    replays = {
        (serve_line(one), one["setting"].removeprefix(REPLAY)): one for one in records if is_replay(one)
    }
    headers = [
        "requests",
        "setting",
        "experts",
        "MB read",
        "TPOT, ms",
        "faster",
        "overhead, %",
        "vs replay",
    ]
    return grouped(
        sorted((one for one in records if not is_replay(one)), key=lambda one: int(one["batch_size"])),
        _engine, headers,
        lambda record: [
            record["batch_size"], record["setting"], *_reads(record), *time(record),
            *_costs(record, replays.get((serve_line(record), record["setting"]))),
        ],
    ) + conditions(records)  # fmt: skip


def serve_engines(name: str = "serve_engines.jsonl") -> str:
    """Engines of their own processes: decoding at the recommended and other settings, against vanilla."""
    records = [one for one in serve_records(name) if one["measure"] == "tpot"]
    complete = {
        (serve_line(one), started(one), one["setting"]): one["complete_model"]
        for one in records
        if one["complete_model"] is not None
    }
    fewest = min((one["subject"]["layers"] for one in records), default=0)
    first = [one for one in records if one["subject"]["layers"] == fewest and not is_replay(one)]
    replays = {_case(one): one for one in records if is_replay(one)}
    headers = ["B", "setting", "experts", "pairs", "TPOT, ms", "faster", "than vanilla"]
    headers += ["per layer"] * bool(complete) + ["vs replay"] * bool(replays)

    def row(record: Record) -> list[str]:
        cells = [str(record["batch_size"]), _served_setting(record), counts(record["experts"])]
        cells += [_pairs(record), *time(record), _times(record["speedup_over_vanilla"])]
        deeper = complete.get((serve_line(record), started(record), record["setting"]))
        cost = over_replay(record, replays.get(_case(record)))
        return [*cells, *[per_layer(deeper)] * bool(complete), *[cost] * bool(replays)]

    ordered = sorted(first, key=lambda one: int(one["batch_size"]))
    return grouped(ordered, _engine, headers, row) + conditions(records)


def serve_loads() -> str:
    """Engines of their own processes under loads other than decoding: first tokens, prompts, a mixture."""
    records = [one for one in serve_records("serve_engines.jsonl") if one["measure"] != "tpot"]
    headers = ["load", "setting", "what is timed", "ms", "faster", "than vanilla"]
    return grouped(
        records, _engine, headers,
        lambda record: [
            record["load"], _served_setting(record), _MEASURES[record["measure"]],
            f"{record['time_ms']['p50']:.1f}", _times(record["speedup"], 2),
            _times(record["speedup_over_vanilla"]),
        ],
    ) + conditions(records)  # fmt: skip


def than_vanilla() -> str:
    """In how many comparisons an engine with sere is surely over 1 % slower, or faster, than vanilla."""
    found: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for record in [record for name in _WITH_VANILLA for record in serve_records(name)]:
        ratio = record["speedup_over_vanilla"]
        if ratio is not None and record["setting"] != "vanilla" and not is_replay(record):
            kind = "off" if record["setting"] == "off" else "re-routing"
            found.setdefault(f"{kind}, a process each", []).append((record["load"], ratio))
    for record in serve_records():
        if record["setting"] == "vanilla":
            # There it is compared with ``off``, not the other way round.
            off = {"p20": 1 / record["speedup"]["p80"], "p50": 1 / record["speedup"]["p50"]}
            off["p80"] = 1 / record["speedup"]["p20"]
            found.setdefault("off, one process", []).append((f"B={record['batch_size']}", off))
    rows = [
        [
            kind, len(ratios), sum(ratio["p80"] < _SLOWER for _, ratio in ratios),
            sum(ratio["p20"] > _FASTER for _, ratio in ratios), _slowest(ratios),
        ]
        for kind, ratios in found.items()
    ]  # fmt: skip
    return table(rows, ["engine", "compared", "slower", "faster", "slowest: median (20 to 80 %)"])


def exact_steps() -> str:
    """Steps that re-route nothing, beside vanilla's, of engines that share weights; a table per commit."""
    records = read_lines("exact_steps.jsonl")

    def times_as_long(record: Record, engine: str) -> str:
        one = record["to_vanilla"][engine]
        return f"{one['value']:.3f}x ({one['low']:.3f}x to {one['high']:.3f}x)"

    return grouped(
        records,
        lambda record: f"{record['config']['preset']}, commit {record['commit'][:10]}",
        ["engines", "layers", "B", "sere is", "vanilla, ms", "with sere", "vanilla again"],
        lambda record: [
            *(record["config"][name] for name in ("mode", "layers", "B", "state")),
            f"{record['step_ms']['vanilla']['p50']:.1f}",
            *(times_as_long(record, engine) for engine in ("sere", "vanilla again")),
        ],
    ) + conditions(records)  # fmt: skip


def _slowest(ratios: list[tuple[str, Mapping[str, float]]]) -> str:
    load, ratio = min(ratios, key=lambda one: one[1]["p50"])
    return f"{load}: {ratio['p50']:.3f}x ({ratio['p20']:.3f}x to {ratio['p80']:.3f}x)"


def routing() -> str:
    """Distinct experts of a step without re-routing: random weights and trained models, beside chance."""
    found: dict[tuple[str, str, int], tuple[float, float]] = {}
    for record in serve_records():
        if record["setting"] == "off" and record["experts"] is not None:
            subject, rows_at_once = record["subject"], int(record["batch_size"])
            case = (str(subject["model"]), "random weights", rows_at_once)
            found[case] = _chance(subject, rows_at_once, record["experts"])
    for name, file in _TRAINED.items():
        record = read_json(file)
        shape = record.get("model") if isinstance(record.get("model"), Mapping) else record
        for case in record["cases"]:
            if case["setting"] == "off" and case["batch_size"] >= _FEWEST_ROWS:
                experts = case.get("experts") or {"distinct_before": case["distinct_after"]}
                found[name, "trained", case["batch_size"]] = _chance(shape, case["batch_size"], experts)
    rows = [
        [name, weights, rows, f"{mine:.1f}", f"{chance:.1f}", f"{100 * mine / chance:.0f} %"]
        for (name, weights, rows), (mine, chance) in sorted(found.items(), key=_by_weights)
    ]
    return table(rows, ["model", "weights", "rows", "experts", "by chance", "share"])


def _by_weights(entry: tuple[tuple[str, str, int], object]) -> tuple[bool, str, int]:
    (name, weights, rows), _ = entry
    return weights == "trained", name, rows


def _chance(shape: Record, rows: int, experts: Record) -> tuple[float, float]:
    """Return the distinct experts, and those if each row chose K of E by chance."""
    return experts["distinct_before"], chance(shape["num_experts"], shape["top_k"], rows)


def serve_online() -> str:
    """A real ``vllm serve`` under load: the steps, then what a client sees."""
    newest = {
        (one["subject"]["model"], mode(one), one["case"], started(one)): one
        for one in read_lines("serve_online.jsonl")
    }
    records = list(newest.values())
    cases = [(record["case"].partition(",")[0], _served_setting(record), record) for record in records]
    steps = [
        [
            case, setting, counts(record["experts"]),
            "" if record["experts"] is None else f"{record['experts']['rows']:.1f}", _reads(record)[1],
            *time(record),
        ]
        for case, setting, record in cases
    ]  # fmt: skip
    clients = [
        [
            case, setting, f"{record['tokens_per_s']['p50']:.0f}", f"{record['requests_per_s']['p50']:.2f}",
            f"{record['ttft_ms']['p50']:.0f}", f"{record['ttft_ms']['p90']:.0f}", record["failed"],
        ]
        for case, setting, record in cases
    ]  # fmt: skip
    before = ["requests", "setting"]
    return (
        f"{shapes(records)}"
        f"{table(steps, [*before, 'experts', 'rows', 'MB read', 'TPOT, ms', 'faster'])}\n\n"
        f"{table(clients, [*before, 'tokens/s', 'requests/s', 'TTFT, ms: median', 'p90', 'failed'])}"
        f"{conditions(records)}"
    )


def vllm_load() -> str:
    """What became of the requests of a load test, then of texts, settings and memory."""
    records = read_lines("vllm_load.jsonl")
    sides = [
        (record["config"]["mode"], name, record["config"]["requests"], side, side["outcomes"])
        for record in records
        for name, side in record["sides"].items()
    ]
    requests = [
        [
            mode, name, count, f"{side['seconds']:.0f}",
            *(outcomes.get(end, 0) for end in ("answered", "protected", "aborted", "refused")),
            len(side["wrong"]),
        ]
        for mode, name, count, side, outcomes in sides
    ]  # fmt: skip
    others = [
        [
            mode, name, f"{outcomes['compared']} / {outcomes.get('other text', 0)}", side["least_margin"],
            " / ".join(str(outcomes.get(f"settings {status}", 0)) for status in (200, 400)),
            f"{side['resident_mb'][-1]:.0f}", f"{side['growth_mb']:+.0f}",
        ]
        for mode, name, _, side, outcomes in sides
    ]  # fmt: skip
    before = ["mode", "server"]
    ends = ["requests", "seconds", "answered", "protected", "aborted", "refused", "lost or wrong"]
    kinds = ["texts compared / different", "least margin", "settings changed / refused", "MB", "MB grown"]
    return f"{table(requests, before + ends)}\n\n{table(others, before + kinds)}{conditions(records)}"


def _times(found: Mapping[str, float] | None, digits: int = 3) -> str:
    return "" if found is None else f"{found['p50']:.{digits}f}x"


def _pairs(record: Record) -> str:
    """Return the share of the slots that flattened runs of layers computed; empty if none was."""
    found = record.get("flattening")  # not in records before 2026-11-28
    return "" if found is None or not found["slots"] else f"{100 * found['pairs'] / found['slots']:.0f} %"


def _case(record: Record) -> tuple[Any, ...]:
    """Return what an engine ran: of a setting and its replay the same."""
    setting = record["setting"].removeprefix(REPLAY)
    return serve_line(record), started(record), record["subject"]["layers"], setting


def _engine(record: Record) -> str:
    processor, model, way, threads, _ = serve_line(record)
    return f"{processor}: {model}, {way}, {threads} thread{'s' * (threads > 1)}"


def _reads(record: Record) -> list[str]:
    """Return the distinct experts that ran and the MB of their weights; empty where nothing was counted."""
    if record["experts"] is None:
        return ["", ""]
    return [f"{record['experts']['distinct_after']:.1f}", f"{record['expert_bytes_per_step'] / 1e6:.0f}"]


def _costs(record: Record, replay: Record | None) -> list[str]:
    tpot, cost = record["tpot_ms"]["p50"], record.get("overhead")
    return [
        "" if cost is None else f"{100 * cost['ms_per_step'] / tpot:.1f}",
        over_replay(record, replay),
    ]


def _served_setting(record: Record) -> str:
    """Return a setting; where it does not say so itself, also what its server was started with."""
    start = "" if record["setting"].startswith("sere:") else started(record)
    return f"{record['setting']} ({start})" if start else short(str(record["setting"]))
