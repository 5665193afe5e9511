"""Load a real ``vllm serve``: short requests by the thousand, some aborted, some malformed.

Run ``python benchmarks/vllm_load.py`` in an environment with vLLM (``make test-vllm`` makes one). Two servers
take the same load, one after the other: the control, whose plug-in is switched off by ``SERE_DISABLE=1``, and
the one that re-routes, whose settings change and whose metrics are read all the while. Concurrency changes
too. Exit code 1 unless

- every request is accounted for: answered in full, aborted by us, or refused because it was malformed;
- what is not re-routed (in the control all, else protected requests) gave, in whatever batch, the text that
  it gives alone in an engine that does not re-route: the control says whether batches alone change texts;
- memory grew by no more than the control's and `ALLOWANCE`, from when each concurrency had its first turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bundled_table import random_bundled_table
from load_requests import PROTECTED, Load, ask_margin, ask_text, one
from sere.bundled import model_path
from sere.files import append_json_line
from sere.provenance import provenance
from tests.support.vllm.server import Server, serve

FORMAT = "sere-vllm-load-2"
MODES = {"eager": ("--enforce-eager",), "compiled": ()}
CONCURRENCY = (1, 4, 16, 32, 8, 64, 2, 24)
STRETCH = 50
CYCLE = STRETCH * len(CONCURRENCY)
"""Requests in which each concurrency has its turn once."""
CHANGES: Sequence[dict[str, Any]] = (
    {"select_top_k": 2}, {"threshold": 0.5}, {"enabled": False}, {"enabled": True, "threshold": 0.0},
    {"select_top_k": 8}, {"select_top_k": 1}, {"select_top_k": 0},
)  # fmt: skip
ALLOWANCE = 0.01
"""Share of the control's resident memory by which growth may exceed the control's: some 30 MB, twice what two
servers differed by so far. A row of budgets kept of each step, 8 kB, would show; a record of 100 bytes kept
of each request would not, which is why the tests count those."""


def main() -> int:
    """Load both servers and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--dtype", default="float32", help="in which the model runs (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=3200, help="for each server (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    if args.requests < 2 * CYCLE:
        parser.error(f"--requests: expected at least {2 * CYCLE}, two turns of each concurrency")
    with tempfile.TemporaryDirectory(prefix="sere-load-") as folder:
        table = Path(folder) / "table.safetensors"
        random_bundled_table().save(table)
        settings = {"table": str(table), "select_top_k": 1, "log_seconds": 10}
        flags = (*MODES[args.mode], "--dtype", args.dtype)
        # The client drops idle connections after 5 s; a server that does so too may close one in use.
        os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "60"
        sides = {}
        for name in ("control", "rerouting"):
            os.environ["SERE_DISABLE"] = str(int(name == "control"))
            with serve(model_path(), settings, Path(folder), *flags) as server:
                sides[name] = asyncio.run(
                    _side(server, name == "rerouting", args.requests, random.Random(args.seed))
                )
    judge_memory(sides)
    record = {
        "format": FORMAT,
        "config": {"mode": args.mode, "dtype": args.dtype, "requests": args.requests,
                   "concurrency": list(CONCURRENCY), "stretch": STRETCH, "seed": args.seed},
        "sides": sides,
        "provenance": provenance(),
    }  # fmt: skip
    print(json.dumps({name: value for name, value in record.items() if name != "provenance"}, indent=2))
    if args.out is not None:
        append_json_line(args.out, record)
    return 1 if any(side["wrong"] for side in sides.values()) else 0


async def _side(server: Server, reroutes: bool, total: int, chance: random.Random) -> dict[str, Any]:
    """Send all requests to one server, in stretches of one concurrency each."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        return await _load(Load(server, client, reroutes), total, chance)


async def _load(load: Load, total: int, chance: random.Random) -> dict[str, Any]:
    started = monotonic()
    prompts = [f"add {chance.randint(100, 999)} {chance.randint(100, 999)} = " for _ in range(40)]
    alone = await _alone(load, prompts)
    changing = asyncio.create_task(_change(load)) if load.reroutes else None
    for start in range(0, total, STRETCH):
        gate = asyncio.Semaphore(CONCURRENCY[start // STRETCH % len(CONCURRENCY)])
        count = min(STRETCH, total - start)
        await asyncio.gather(
            *(one(load, gate, chance.random(), chance.choice(prompts)) for _ in range(count))
        )
        load.resident.append(await asyncio.to_thread(load.server.resident_bytes))
    if changing is not None:
        changing.cancel()
        await asyncio.gather(changing, return_exceptions=True)
    seconds = monotonic() - started
    await _after(load, prompts, alone)
    _account(load, total)
    return {
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(load.outcomes.items())),
        "wrong": load.wrong,
        "least_margin": round(min(load.margins), 4),
        "resident_mb": [round(size / 1e6, 1) for size in load.resident],
    }


async def _alone(load: Load, prompts: Sequence[str]) -> dict[str, str]:
    """Ask alone in the batch: keep the texts without re-routing, return those of the server as it is."""
    if load.reroutes:
        load.server.post("/v1/sere/settings", {"enabled": False})
    for prompt in prompts:
        load.expected[prompt] = await ask_text(load.client, prompt, {})
        load.margins.append(await ask_margin(load.client, prompt))
    if not load.reroutes:
        return load.expected
    load.server.post("/v1/sere/settings", {"enabled": True})
    return {prompt: await ask_text(load.client, prompt, {}) for prompt in prompts}


async def _change(load: Load) -> None:
    """Change settings and read the metrics all the while; the last kind of change must be refused."""
    number = 0
    while True:
        await asyncio.sleep(1.0)
        change = CHANGES[number % len(CHANGES)]
        status, answer = await asyncio.to_thread(load.server.post, "/v1/sere/settings", change)
        load.outcomes[f"settings {status}"] += 1
        if (status == 200) != (change != {"select_top_k": 0}):
            load.wrong.append(f"settings {change}: {status} {answer}")
        status, _ = await asyncio.to_thread(load.server.get, "/v1/sere/metrics")
        load.outcomes[f"metrics {status}"] += 1
        if status != 200:
            load.wrong.append(f"metrics: {status}")
        number += 1


async def _after(load: Load, prompts: Sequence[str], alone: dict[str, str]) -> None:
    """When all is quiet: no request is left, and alone in its batch each gives the very texts of before."""
    if load.reroutes:
        load.server.post("/v1/sere/settings", {"enabled": True, "select_top_k": 1, "threshold": 0.0})
    for prompt in prompts:
        if await ask_text(load.client, prompt, {}) != alone[prompt]:
            load.wrong.append(f"alone, but another text than before the load: {prompt!r}")
        if await ask_text(load.client, prompt, PROTECTED) != load.expected[prompt]:
            load.wrong.append(f"protected and alone, but another text than off: {prompt!r}")
    running = re.findall(
        r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", load.server.get("/metrics")[1], re.M
    )
    if [float(count) for count in running] != [0.0, 0.0]:
        load.wrong.append(f"expected no request running or waiting, got {running}")
    status, text = load.server.get("/v1/sere/stats")
    if status != (200 if load.reroutes else 503) or (
        load.reroutes and not json.loads(text)["steps_rerouted"]
    ):
        load.wrong.append(
            f"expected {'re-routed steps' if load.reroutes else 'no re-routing'}, got {status} {text[:200]}"
        )


def _account(load: Load, total: int) -> None:
    ends = ("answered", "protected", "aborted", "refused")
    accounted = sum(load.outcomes[name] for name in ends)
    if accounted != total:
        load.wrong.append(f"{total} requests were sent, {accounted} accounted for")


def judge_memory(sides: dict[str, dict[str, Any]]) -> None:
    """Note by how much each server grew after each concurrency's first turn; compare with the control."""
    first = CYCLE // STRETCH - 1
    for side in sides.values():
        side["growth_mb"] = round(side["resident_mb"][-1] - side["resident_mb"][first], 1)
    control, ours = sides["control"], sides["rerouting"]
    most = control["growth_mb"] + ALLOWANCE * control["resident_mb"][first]
    if ours["growth_mb"] > most:
        ours["wrong"].append(f"memory grew by {ours['growth_mb']} MB, expected at most {most:.1f}")


if __name__ == "__main__":
    sys.exit(main())
