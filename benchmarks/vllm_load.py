"""Load a real ``vllm serve`` with re-routing: short requests by the thousand, some aborted, some malformed.

Run ``python benchmarks/vllm_load.py`` in an environment with vLLM (``make test-vllm`` makes one). Concurrency
changes while it runs, and so do the settings of re-routing. At the end every request must be accounted for:
answered in full, aborted by us, or refused because it was malformed; protected requests must have given the
text of an engine without re-routing, and the engine's memory must have stayed flat. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sere.bundled import model_path
from sere.files import append_json_line
from sere.provenance import provenance
from tests.integrations.vllm.server import Server, serve

CONCURRENCY = (1, 4, 16, 32, 8, 64, 2, 24)
CHANGES: Sequence[dict[str, Any]] = (
    {"select_top_k": 2}, {"threshold": 0.5}, {"enabled": False}, {"enabled": True, "threshold": 0.0},
    {"select_top_k": 8}, {"select_top_k": 1}, {"select_top_k": 0},
)  # fmt: skip
MOST_GROWTH = 0.02
MALFORMED = ({"vllm_xargs": {"sere": "of"}}, {"vllm_xargs": {"sere": 0}}, {"max_tokens": -1})


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        outcomes: How many ended in which way.
        wrong: Descriptions of what should not have happened.
        memory: Seconds since the start and resident bytes of all the server's processes.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def main() -> int:
    """Run the load and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sere-load-") as folder:
        table = Path(folder) / "table.safetensors"
        _random_table(table)
        settings = {"table": str(table), "select_top_k": 1, "log_seconds": 10}
        with serve(model_path(), settings, Path(folder), "--enforce-eager") as server:
            record = asyncio.run(_load(server, args.requests, random.Random(args.seed)))
    print(json.dumps({name: value for name, value in record.items() if name != "provenance"}, indent=2))
    if args.out is not None:
        append_json_line(args.out, record)
    return 1 if record["wrong"] else 0


def _random_table(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from sere.bench.subject import random_table

    random_table(AutoModelForCausalLM.from_pretrained(model_path())).save(path)


async def _load(server: Server, total: int, chance: random.Random) -> dict[str, Any]:
    """Send all requests, in stretches of one concurrency each; settings change all the while."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300)
    tally, started = Tally(), monotonic()
    prompts = [f"add {chance.randint(100, 999)} {chance.randint(100, 999)} = " for _ in range(20)]
    server.post("/v1/sere/settings", {"enabled": False})
    expected = {prompt: await _text(client, prompt, {}) for prompt in prompts}
    server.post("/v1/sere/settings", {"enabled": True})
    changing = asyncio.create_task(_change(server, tally))
    watching = asyncio.create_task(_watch(server, tally, started))
    sent = 0
    while sent < total:
        width = CONCURRENCY[(sent // 150) % len(CONCURRENCY)]
        count = min(150, total - sent)
        gate = asyncio.Semaphore(width)
        jobs = [
            _one(client, gate, chance.random(), chance.choice(prompts), expected, tally) for _ in range(count)
        ]
        await asyncio.gather(*jobs)
        sent += count
    for task in (changing, watching):
        task.cancel()
    await asyncio.gather(changing, watching, return_exceptions=True)
    await _after(server, client, prompts, expected, tally)
    return _record(tally, total, monotonic() - started, server)


async def _one(
    client: Any, gate: asyncio.Semaphore, dice: float, prompt: str, expected: dict[str, str], tally: Tally
) -> None:
    """Send one request of a kind that the dice choose; note what became of it."""
    async with gate:
        try:
            if dice < 0.10:
                await _abort(client, prompt, tally)
            elif dice < 0.15:
                await _malformed(client, prompt, MALFORMED[int(dice * 1000) % len(MALFORMED)], tally)
            elif dice < 0.35:
                text = await _text(client, prompt, {"vllm_xargs": {"sere": "off"}})
                tally.outcomes["protected"] += 1
                if text != expected[prompt]:
                    tally.outcomes["protected, other text"] += 1
                    tally.wrong.append(f"protected, but another text than off: {prompt!r}")
            else:
                text = await _text(client, prompt, {})
                tally.outcomes["answered"] += 1
        except Exception as error:
            tally.wrong.append(f"{type(error).__name__}: {error}"[:300])


async def _text(client: Any, prompt: str, extra: dict[str, Any]) -> str:
    answer = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=16, temperature=0, extra_body={"ignore_eos": True} | extra
    )
    if answer.usage.completion_tokens != 16:
        raise RuntimeError(f"expected 16 tokens, got {answer.usage.completion_tokens}")
    return str(answer.choices[0].text)


async def _abort(client: Any, prompt: str, tally: Tally) -> None:
    """Start a long answer and hang up after a few pieces."""
    stream = await client.completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=150,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 3:
            await stream.close()
            break
    tally.outcomes["aborted"] += 1


async def _malformed(client: Any, prompt: str, change: dict[str, Any], tally: Tally) -> None:
    """Send what must be refused."""
    from openai import BadRequestError

    body = {"max_tokens": 16} | {k: v for k, v in change.items() if k == "max_tokens"}
    extra = {k: v for k, v in change.items() if k != "max_tokens"}
    try:
        await client.completions.create(model="tiny", prompt=prompt, extra_body=extra, **body)
    except BadRequestError:
        tally.outcomes["refused"] += 1
    else:
        tally.wrong.append(f"accepted although malformed: {change}")


async def _change(server: Server, tally: Tally) -> None:
    """Change settings all the while; the last kind of change must be refused."""
    place = 0
    while True:
        await asyncio.sleep(1.0)
        change = CHANGES[place % len(CHANGES)]
        status, answer = await asyncio.to_thread(server.post, "/v1/sere/settings", change)
        tally.outcomes[f"settings {status}"] += 1
        if (status == 200) != (change != {"select_top_k": 0}):
            tally.wrong.append(f"settings {change}: {status} {answer}")
        place += 1


async def _watch(server: Server, tally: Tally, started: float) -> None:
    """Note the resident memory of the server's processes every few seconds."""
    while True:
        tally.memory.append((round(monotonic() - started, 1), await asyncio.to_thread(server.resident_bytes)))
        await asyncio.sleep(2.0)


async def _after(
    server: Server, client: Any, prompts: Sequence[str], expected: dict[str, str], tally: Tally
) -> None:
    """When all is quiet: alone in its batch, a protected request gives the very text of off."""
    server.post("/v1/sere/settings", {"enabled": True, "select_top_k": 1, "threshold": 0.0})
    for prompt in prompts:
        if await _text(client, prompt, {"vllm_xargs": {"sere": "off"}}) != expected[prompt]:
            tally.wrong.append(f"protected and alone, but another text than off: {prompt!r}")
    answers = json.loads(server.get("/v1/sere/stats")[1])
    if not answers["steps_rerouted"]:
        tally.wrong.append("no step was re-routed")


def _record(tally: Tally, total: int, seconds: float, server: Server) -> dict[str, Any]:
    ends = ("answered", "protected", "aborted", "refused")
    growth = _growth([size for _, size in tally.memory])
    if growth > MOST_GROWTH:
        tally.wrong.append(f"resident memory grew by {100 * growth:.1f} % between second and last quarter")
    accounted = sum(tally.outcomes[name] for name in ends)
    if accounted != total:
        tally.wrong.append(f"{total} requests were sent, {accounted} accounted for")
    return {
        "format": "sere-vllm-load-1",
        "requests": total,
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "wrong": tally.wrong,
        "memory_growth": round(growth, 4),
        "resident_mb": [[at, size // 10**6] for at, size in tally.memory],
        "concurrency": list(CONCURRENCY),
        "log_lines": server.log.read_text().count("sere: "),
        "provenance": provenance(),
    }


def _growth(sizes: Sequence[int]) -> float:
    """Return by which share the last quarter's median is above the second's: the first warms caches up."""
    quarter = len(sizes) // 4
    if quarter == 0:
        return 0.0
    return median(sizes[-quarter:]) / median(sizes[quarter : 2 * quarter]) - 1


if __name__ == "__main__":
    sys.exit(main())
