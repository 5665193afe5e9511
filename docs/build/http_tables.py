"""Tables of a server's HTTP routes: what became of generated requests, and of a soak."""

from __future__ import annotations

from cells import conditions, table
from records import Record, read_lines

# What a soak's requests ask for, and how some of them end.
_ASKED = ("nothing", "tier safe", "tier fast", "own S", "off", "aborted", "refused")


def fuzz_http() -> str:
    """Of each route the answers to generated requests, then the pauses of a stream beside them."""
    records = list({one["route"]: one for one in read_lines("fuzz_http.jsonl")}.values())
    answers = [
        [
            record["route"], *_answers(record["statuses"]), f"{record['slowest_answer_ms']:.0f}",
            len(record["wrong"]),
        ]
        for record in records
    ]  # fmt: skip
    pauses = [
        [record["route"], *_late(record["gaps_ms"]["fuzzed"]), *_late(record["gaps_ms"]["control"])]
        for record in records
    ]
    first = ["route", "requests", "2xx", "4xx", "closed", "5xx", "no answer", "slowest, ms", "wrong"]
    heads = ["tokens", "late", "server's", "most, ms"]
    second = ["route", *heads, "control: tokens", *heads[1:]]
    return f"{table(answers, first)}\n\n{table(pauses, second)}{conditions(records)}"


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
            "compiled" if record["config"]["compiled"] else "eager",
            f"{record['config']['seconds'] / 60:.0f}",
            *(record["outcomes"].get(asked, 0) for asked in _ASKED),
            len(record["wrong"]) + record["tracebacks"],
        ]
        for record in records
    ]
    others = [
        [
            " / ".join(str(record["outcomes"].get(f"settings {status}", 0)) for status in (200, 400)),
            " / ".join(str(record["outcomes"].get(f"{route} 200", 0)) for route in ("metrics", "stats")),
            " / ".join(f"{rate:.1f}" for rate in record["requests_per_s"].values()),
            "{:.3f} ({:.3f} to {:.3f})".format(record["scraper"]["ratio"], *record["scraper"]["interval"]),
            " / ".join(f"{size:.0f}" for size in _quarters(record["resident_mb"])),
        ]
        for record in records
    ]
    first = ["mode", "minutes", *(asked.removeprefix("tier ") for asked in _ASKED), "wrong"]
    second = ["changed / refused", "metrics / stats read", "requests per s", "with the scraper", "MB"]
    return f"{table(requests, first)}\n\n{table(others, second)}{conditions(records)}"


def _quarters(resident: list[float]) -> list[float]:
    """Return the memory after each quarter of a soak."""
    return [resident[max(0, len(resident) * number // 4 - 1)] for number in (1, 2, 3, 4)]
