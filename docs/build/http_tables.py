"""Tables of a server's HTTP routes: what became of generated requests, and of a soak."""

from __future__ import annotations

from cells import conditions, table
from records import NOT_MEASURED, Record, read_lines

# What a soak's requests ask for, and how some of them end.
_ASKED = ("nothing", "tier safe", "tier fast", "own S", "off", "aborted", "refused")


def fuzz_http() -> str:
    """Of each route the answers to generated requests, the engine's pauses, and late tokens beside them.

    Records before sere-fuzz-http-5 have nothing of the engine, and called late tokens wrong.
    """
    lines = read_lines("fuzz_http.jsonl")
    runs = list({(one["route"], sum(one["statuses"].values())): one for one in lines}.values())
    newest = list({one["route"]: one for one in lines}.values())
    answers = [
        [
            record["route"], *_answers(record["statuses"]), f"{record['slowest_answer_ms']:.0f}",
            len([text for text in record["wrong"] if "tokens came over" not in text]),
        ]
        for record in runs
    ]  # fmt: skip
    engine = [
        [record["route"], *_stops(record["engine"]["fuzzed"]), *_stops(record["engine"]["control"])[3:]]
        for record in newest
        if "engine" in record
    ]
    late = [
        [record["route"], *_late(record["gaps_ms"]["fuzzed"]), *_late(record["gaps_ms"]["control"])]
        for record in newest
    ]
    first = ["route", "requests", "2xx", "4xx", "closed", "5xx", "no answer", "slowest, ms", "wrong"]
    heads = ["pause", "step"]
    second = ["route", "calls", "99.9 %", "longest", *heads, "control: pause", *heads[1:]]
    heads = ["tokens", "late", "server's", "most, ms"]
    third = ["route", *heads, "control: tokens", *heads[1:]]
    inside = table(engine, second) if engine else NOT_MEASURED
    return f"{table(answers, first)}\n\n{inside}\n\n{table(late, third)}{conditions(runs)}"


def _stops(found: Record) -> list[str]:
    """Return the calls that reached the engine, how long they took, and its longest pause and step."""
    call = found["own_call_ms"]
    most = [call["p99_9"], call["most"], found["own_pause_ms"]["most"], found["own_step_ms"]["most"]]
    return [f"{sum(found['calls'].values())}", *(f"{ms:.1f}" for ms in most)]


def _answers(statuses: Record) -> list[int]:
    """Return how many answers there were, and those of each kind."""
    kinds = [sum(n for status, n in statuses.items() if status.startswith(kind)) for kind in "245"]
    fine, refused, failed = kinds
    closed, lost = (statuses.get(kind, 0) for kind in ("closed", "no answer"))
    return [sum(statuses.values()), fine, refused, closed, failed, lost]


def _late(gaps: Record) -> list[str]:
    """Return the tokens, the late ones, those of them that the server itself kept back, and its longest."""
    return [
        *(f"{gaps[name]}" for name in ("count", "above_100_ms", "own_above_100_ms")),
        f"{gaps['own_most']:.0f}",
    ]


def soak() -> str:
    """What became of a soak's requests, then of its readers, its changes and its memory."""
    records = read_lines("soak_serve.jsonl")
    requests = [
        [
            ("compiled" if record["config"]["compiled"] else "eager") + ", vanilla" * _vanilla(record),
            f"{record['config']['seconds'] / 60:.0f}",
            *(record["outcomes"].get(asked, 0) for asked in _ASKED),
            len(record["wrong"]) + record["tracebacks"],
            _longest(record.get("engine")),
        ]
        for record in records
    ]
    others = [
        [
            " / ".join(str(record["outcomes"].get(f"settings {status}", 0)) for status in (200, 400)),
            " / ".join(str(record["outcomes"].get(f"{route} 200", 0)) for route in ("metrics", "stats")),
            " / ".join(f"{rate:.1f}" for rate in record["requests_per_s"].values() if rate),
            _scraped(record),
            " / ".join(f"{size:.0f}" for size in _quarters(record["resident_mb"])),
        ]
        for record in records
    ]
    first = [
        "mode",
        "minutes",
        *(asked.removeprefix("tier ") for asked in _ASKED),
        "wrong",
        "call / pause, ms",
    ]
    second = ["changed / refused", "metrics / stats read", "requests per s", "with the scraper", "MB"]
    return f"{table(requests, first)}\n\n{table(others, second)}{conditions(records)}"


def _scraped(record: Record) -> str:
    """Return the throughput beside the scraper, as a share; a soak without readers has none."""
    found = record["scraper"]
    return "" if _vanilla(record) else "{:.3f} ({:.3f} to {:.3f})".format(found["ratio"], *found["interval"])


def _vanilla(record: Record) -> bool:
    """Whether a soak's server had nothing of sere; older records say nothing of it."""
    return bool(record["config"].get("vanilla"))


def _longest(found: Record | None) -> str:
    """Return the engine's own time of its longest call and pause; older records have none."""
    if found is None:
        return ""
    return " / ".join(f"{found[f'own_{kind}_ms']['most']:.0f}" for kind in ("call", "pause"))


def _quarters(resident: list[float]) -> list[float]:
    """Return the memory after each quarter of a soak."""
    return [resident[max(0, len(resident) * number // 4 - 1)] for number in (1, 2, 3, 4)]
