"""Soak a real ``vllm serve`` in compiled mode for a given time, with everything that clients do at once.

Run ``make soak SOAK_SECONDS=3600`` (or ``python benchmarks/soak_serve.py`` in an environment with vLLM). Some
clients ask for completions of every tier of a table, with an S of their own and without re-routing, abort
them, or send malformed ones; one changes settings. There are three kinds of stretches, in turns: with no
reader, with one that reads the metrics each second, and with one more that asks for statistics in a tight
loop. Exit code 1 unless

- every request is answered in full, aborted by us, or refused because it was malformed;
- a protected request that is alone in its batch gives the same text at the end as at the beginning;
- no call and no pause between steps takes more than 100 ms of the engine's own time (``engine_pauses.py``);
- memory in the last quarter is at most `GROWTH` times that in the second;
- throughput with the reader of metrics is not below `LEAST_RATIO` of that without: each such stretch is
  compared with its neighbor without readers, and the interval of the mean ratio (95 %, bootstrap over the
  pairs) does not end below it. The record says whether the interval begins above it, which is the proof.

``--vanilla`` is the control of the memory: the same requests to a server that has nothing of sere, so that
nobody reads, changes settings or is re-routed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import fmean, median
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bundled_table import random_bundled_table
from engine_pauses import figures, installed, judged
from load_requests import PROTECTED, Load, ask_text, one
from sere.bundled import model_path
from sere.engines.server import Server, serve
from sere.eval.statistics.by_round import LEAST_ROUNDS, bootstrap
from sere.files import append_json_line
from sere.provenance import provenance

FORMAT = "sere-soak-serve-3"
CLIENTS = 8
GROWTH = 1.02
LEAST_RATIO = 0.98
NOBODY, SCRAPER, HAMMER = "nobody", "scraper", "scraper and tight loop"
# A stretch with the scraper has one without readers beside it, in turns before and behind.
KINDS = (NOBODY, SCRAPER, SCRAPER, NOBODY, HAMMER)
# What requests ask for.
ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "off": PROTECTED,
    **{f"tier {name}": {"vllm_xargs": {"sere": name}} for name in ("safe", "fast")},
    "own S": {"vllm_xargs": {"sere": 2}},
}
START_S = 580.0
CHANGES: tuple[dict[str, Any], ...] = (
    {"select_top_k": 2}, {"threshold": 0.5}, {"enabled": False}, {"enabled": True, "threshold": 0.0},
    {"active_experts": 32}, {"tier": "fast"}, {"tier": None}, {"count_only": True},
    {"count_only": False, "active_experts": 24}, {"select_top_k": 1},
    {"select_top_k": 0}, {"keep": {"0": [10**6]}},
)  # fmt: skip
REFUSED = CHANGES[-2:]


def main() -> int:
    """Soak one server and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (default: %(default)s)")
    parser.add_argument("--stretch", type=float, default=30.0, help="seconds of each (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--vanilla", action="store_true", help="a server without sere, the memory's control")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sere-soak-") as folder:
        table = Path(folder) / "table.sere"
        table_with_tiers(table)
        flags = ["--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", "32"]
        flags += ["--enforce-eager"] if args.eager else []
        given = None if args.vanilla else {"table": str(table), "active_experts": 24, "log_seconds": 10}
        with (
            installed(Path(folder) / "notes") as notes,
            serve(model_path(), given, Path(folder) / "log", *flags, start_s=START_S) as server,
        ):
            notes.take()
            chance = random.Random(args.seed)
            record = asyncio.run(soak(server, args.seconds, args.stretch, chance, vanilla=args.vanilla))
            if not args.vanilla:
                record["engine"] = figures(notes.take())
                record["wrong"] += judged(record["engine"])
            record["tracebacks"] = server.log.read_text(errors="replace").count("Traceback")
    record |= {
        "format": FORMAT,
        "config": {"seconds": args.seconds, "stretch": args.stretch, "compiled": not args.eager,
                   "vanilla": args.vanilla, "clients": CLIENTS, "seed": args.seed},
        "provenance": provenance(),
    }  # fmt: skip
    print(json.dumps({name: value for name, value in record.items() if name != "provenance"}, indent=2))
    if args.out is not None:
        append_json_line(args.out, record)
    return 1 if record["wrong"] or record["tracebacks"] else 0


def table_with_tiers(path: Path) -> None:
    """Write a table with random similarities and two tiers."""
    from sere.table import Tier

    random_bundled_table().with_tiers({"safe": Tier("safe", 48), "fast": Tier("fast", 12)}).save(path)


async def soak(
    server: Server, seconds: float, stretch: float, chance: random.Random, *, vanilla: bool = False
) -> dict[str, Any]:
    """Run all clients until the time is up; return what was seen. A vanilla server has no readers."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        load, kinds = Load(server, client, reroutes=not vanilla), (NOBODY,) if vanilla else KINDS
        prompts = [f"add {chance.randint(100, 999)} {chance.randint(100, 999)} = " for _ in range(40)]
        for prompt in prompts[:10]:
            load.expected[prompt] = await ask_text(client, prompt, PROTECTED)
        rates: list[tuple[str, float]] = []
        changing = [] if vanilla else [asyncio.create_task(_change(load))]
        end, number, done = monotonic() + seconds, 0, 0
        while monotonic() < end:
            kind = kinds[number % len(kinds)]
            readers = {NOBODY: (), SCRAPER: (_scrape,), HAMMER: (_scrape, _hammer)}[kind]
            reading = [asyncio.create_task(task(load)) for task in readers]
            started, before = monotonic(), done
            done += await _ask_all(load, min(end, started + stretch), prompts[10:], chance)
            rates.append((kind, (done - before) / (monotonic() - started)))
            await _cancel(reading)
            load.resident.append(await asyncio.to_thread(server.resident_bytes))
            number += 1
        await _cancel(changing)
        if not vanilla:
            await asyncio.to_thread(server.post, "/v1/sere/settings", {"enabled": True, "count_only": False})
        for prompt, text in load.expected.items():
            if await ask_text(client, prompt, PROTECTED) != text:
                load.wrong.append(f"protected and alone, but another text than at the beginning: {prompt!r}")
    return _judged(load, rates)


def _judged(load: Load, rates: list[tuple[str, float]]) -> dict[str, Any]:
    """Return the record of a soak; note memory that grew and a scraper that slows requests down."""
    load.wrong += growth(load.resident)
    ratios = [b[1] / a[1] for a, b in neighbors(rates)]
    least, most = interval(ratios)
    if most < LEAST_RATIO:
        load.wrong.append(f"with the scraper {least:.4f} to {most:.4f} of the throughput without")
    by_kind = {kind: [rate for one, rate in rates if one == kind] for kind in dict.fromkeys(KINDS)}
    return {
        "outcomes": dict(sorted(load.outcomes.items())),
        "requests_per_s": {kind: round(median(found or [0.0]), 2) for kind, found in by_kind.items()},
        "scraper": {
            "pairs": len(ratios), "ratio": round(fmean(ratios or [1.0]), 4),
            "interval": [round(least, 4), round(most, 4)], "shown": least >= LEAST_RATIO,
        },
        "resident_mb": [round(size / 1e6, 1) for size in load.resident],
        "wrong": load.wrong[:20],
    }  # fmt: skip


def neighbors(rates: list[tuple[str, float]]) -> list[tuple[tuple[str, float], tuple[str, float]]]:
    """Return the pairs of neighboring stretches without readers and with the scraper alone, in this order."""
    pairs, index = [], 0
    while index + 1 < len(rates):
        two = rates[index : index + 2]
        if {kind for kind, _ in two} == {NOBODY, SCRAPER}:
            first, second = sorted(two, key=lambda one: one[0] == SCRAPER)
            pairs.append((first, second))
            index += 1
        index += 1
    return pairs


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by bootstrap; everything for too few ratios."""
    return bootstrap(ratios) if len(ratios) >= LEAST_ROUNDS else (0.0, sys.float_info.max)


def growth(resident: list[int]) -> list[str]:
    """Return what is wrong with the memory after each stretch: the last quarter against the second one."""
    quarter = len(resident) // 4
    if quarter == 0:
        return []
    settled, last = median(resident[quarter : 2 * quarter]), median(resident[-quarter:])
    return [f"memory grew from {settled:.0f} to {last:.0f} bytes"] if last > GROWTH * settled else []


async def _ask_all(load: Load, end: float, prompts: list[str], chance: random.Random) -> int:
    """Let all clients ask until a time; return how many requests they made."""
    # Of a protected request in a batch, vLLM alone may give another text: that is not what is looked for.
    gate = asyncio.Semaphore(CLIENTS)

    async def client() -> int:
        count = 0
        while monotonic() < end:
            dice = chance.random()
            if dice < 0.15:
                await one(load, gate, dice, chance.choice(prompts))
            else:
                await ask_as(load, chance.choice(list(ASKED)), chance.choice(prompts))
            count += 1
        return count

    return sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))


async def ask_as(load: Load, asked: str, prompt: str) -> None:
    """Send one request that asks for something; note what became of it."""
    try:
        await ask_text(load.client, prompt, ASKED[asked])
        load.outcomes[asked] += 1
    except Exception as error:
        load.wrong.append(f"{asked}: {type(error).__name__}: {error}"[:300])


async def _change(load: Load) -> None:
    """Change settings all the while; some changes must be refused."""
    number = 0
    while True:
        await asyncio.sleep(1.0)
        change = CHANGES[number % len(CHANGES)]
        status, answer = await asyncio.to_thread(load.server.post, "/v1/sere/settings", change)
        load.outcomes[f"settings {status}"] += 1
        if status != (400 if change in REFUSED else 200):
            load.wrong.append(f"settings {change}: {status} {answer}")
        number += 1


async def _scrape(load: Load) -> None:
    """Read the metrics each second, as Prometheus does."""
    while True:
        await _get(load, "metrics")
        await asyncio.sleep(1.0)


async def _hammer(load: Load) -> None:
    """Ask for the statistics in a tight loop."""
    while True:
        await _get(load, "stats")


async def _get(load: Load, route: str) -> None:
    status, _ = await asyncio.to_thread(load.server.get, f"/v1/sere/{route}")
    load.outcomes[f"{route} {status}"] += 1
    if status != 200:
        load.wrong.append(f"{route}: {status}")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
