"""Tables of vLLM: engines of one process, servers under load, and what became of a load test."""

from __future__ import annotations

from cells import conditions, counts, grouped, shapes, table, time
from records import NOT_MEASURED, REPLAY, Record, mode, read_lines, serve_line, serve_records, started


def serve(name: str = "serve.jsonl") -> str:
    """A vLLM engine at real models' layer shapes, a table per engine; not those with a floor."""
    records = [record for record in serve_records(name) if not started(record)]
    replays = {
        (serve_line(one), one["setting"].removeprefix(REPLAY)): one for one in records if _is_replay(one)
    }
    headers = [
        "requests",
        "setting",
        "experts",
        "MB read",
        "TPOT, ms",
        "faster",
        "overhead, %",
        "vs replay, %",
    ]
    return grouped(
        sorted((one for one in records if not _is_replay(one)), key=lambda one: int(one["batch_size"])),
        _engine, headers,
        lambda record: [
            record["batch_size"], record["setting"], *_reads(record), *time(record),
            *_costs(record, replays.get((serve_line(record), record["setting"]))),
        ],
    ) + conditions(records)  # fmt: skip


def serve_floor() -> str:
    """Engines started with a floor or another such setting, beside those without: one row per setting."""
    everything = [record for record in serve_records() if record["experts"] is not None]
    lines = {serve_line(record) for record in everything if started(record)}
    if not lines:
        return NOT_MEASURED
    records = [record for record in everything if serve_line(record) in lines]
    records.sort(key=lambda record: (record["batch_size"], started(record)))
    headers = ["requests", "started with", "setting", "experts", "MB read", "TPOT, ms", "faster"]
    return grouped(
        records, _engine, headers,
        lambda record: [
            record["batch_size"], started(record), record["setting"], *_reads(record), *time(record),
        ],
    ) + conditions(records)  # fmt: skip


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


def _is_replay(record: Record) -> bool:
    return str(record["setting"]).startswith(REPLAY)


def _engine(record: Record) -> str:
    model, way, threads, _ = serve_line(record)
    return f"Layers of {model}, {way}, {threads} thread{'s' * (threads > 1)}"


def _reads(record: Record) -> list[str]:
    """Return the distinct experts that ran and the MB of their weights; empty where nothing was counted."""
    if record["experts"] is None:
        return ["", ""]
    return [f"{record['experts']['distinct_after']:.1f}", f"{record['expert_bytes_per_step'] / 1e6:.0f}"]


def _costs(record: Record, replay: Record | None) -> list[str]:
    tpot, cost = record["tpot_ms"]["p50"], record.get("overhead")
    return [
        "" if cost is None else f"{100 * cost['ms_per_step'] / tpot:.1f}",
        "" if replay is None else f"{100 * (tpot / replay['tpot_ms']['p50'] - 1):+.1f}",
    ]


def _served_setting(record: Record) -> str:
    """Return a setting; where it does not say so itself, also what its server was started with."""
    start = "" if record["setting"].startswith("sere:") else started(record)
    return f"{record['setting']} ({start})" if start else str(record["setting"])
