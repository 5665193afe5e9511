"""Send requests to a server of the OpenAI API as users would, and note when each token arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random
from time import perf_counter
from typing import Any

from sere.errors import InputError, MissingDependency

_SILENCE_S = 600
_MOST_LINE = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests arrive; exactly one of the two is given.

    Attributes:
        concurrency: Requests at once; the next is sent when one has ended: a closed loop.
        request_rate: Mean requests per second, at the times of a Poisson process, whether or not earlier
            ones have ended: an open loop.
    """

    concurrency: int | None = None
    request_rate: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.concurrency, self.request_rate) if value is not None]
        if len(given) != 1 or not 0 < given[0] < float("inf") or (self.concurrency or 1) < 1:
            raise InputError(
                "load: expected either a concurrency of at least 1 or a request rate above 0, "
                f"got {self.concurrency} and {self.request_rate}"
            )

    @property
    def label(self) -> str:
        """The load in words, e.g. ``8 at once`` or ``2 per second``."""
        return f"{self.concurrency} at once" if self.concurrency else f"{self.request_rate:g} per second"

    def arrivals(self, count: int, seed: str) -> list[float]:
        """Return arrival times in seconds since the first request; in a closed loop all are 0.

        Args:
            count: Requests.
            seed: Seed of the gaps between them.
        """
        if self.request_rate is None:
            return [0.0] * count
        chance = Random(seed)
        gaps = [chance.expovariate(self.request_rate) for _ in range(count - 1)]
        return list(accumulate(gaps, initial=0.0))


@dataclass(slots=True)
class Answer:
    """The outcome of one request; times are in seconds since the first request was due.

    Attributes:
        due: When it arrived; in a closed loop, when it was sent.
        pieces: When tokens arrived, and how many.
        error: What went wrong, or None.
    """

    due: float = 0.0
    pieces: list[tuple[float, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens that arrived."""
        return sum(count for _, count in self.pieces)

    @property
    def ttft_ms(self) -> float:
        """Time from the arrival to the first token."""
        return 1e3 * (self.pieces[0][0] - self.due)

    @property
    def tpot_ms(self) -> float:
        """Mean time per token after the first piece."""
        (first, count), (last, _) = self.pieces[0], self.pieces[-1]
        return 1e3 * (last - first) / (self.tokens - count)

    @property
    def gaps_ms(self) -> list[float]:
        """Times between pieces, which are one token each unless the server joined some."""
        return [1e3 * (after - before) for (before, _), (after, _) in pairwise(self.pieces)]


def run_load(
    url: str, model: str, prompts: Sequence[Sequence[int]], tokens: int, load: Load, *, seed: str
) -> list[Answer]:
    """Send one request per prompt, wait for all, and return the outcome of each, in the prompts' order.

    Decoding is greedy and does not stop at an end token. A request that fails, or does not return all
    its tokens, has an ``error``; the others continue.

    Args:
        url: The server's address, without a path.
        model: The name under which it serves the model.
        prompts: Token ids.
        tokens: New tokens of each request, at least 2.
        load: How they arrive.
        seed: Seed of their arrival.

    Raises:
        MissingDependency: aiohttp is not installed.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "the load generator needs aiohttp, which comes with vLLM: pip install aiohttp"
        ) from error
    body = {
        "model": model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        # Without a tokenizer there is no text, so tokens are counted by their ids.
        "return_token_ids": True,
    }  # fmt: skip
    bodies = [body | {"prompt": list(prompt)} for prompt in prompts]
    return asyncio.run(_send_all(f"{url}/v1/completions", bodies, load, load.arrivals(len(bodies), seed)))


async def _send_all(
    url: str, bodies: Sequence[Mapping[str, Any]], load: Load, arrivals: Sequence[float]
) -> list[Answer]:
    import aiohttp

    gate = asyncio.Semaphore(load.concurrency or len(bodies))
    answers = [Answer(due) for due in arrivals]
    async with aiohttp.ClientSession(
        # One connection a request: vLLM closes those that were idle for 5 s. Where the machine stands still
        # for so long, a request that was sent on one of them would be lost.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_S),
        read_bufsize=_MOST_LINE,
    ) as session:
        started = perf_counter()

        async def one(body: Mapping[str, Any], answer: Answer) -> None:
            await asyncio.sleep(answer.due - (perf_counter() - started))
            async with gate:
                if load.request_rate is None:
                    answer.due = perf_counter() - started
                try:
                    await _send(session, url, body, answer, started)
                except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
                    answer.error = f"{type(error).__name__}: {error}"
            if answer.error is None and answer.tokens != body["max_tokens"]:
                answer.error = f"expected {body['max_tokens']} tokens, got {answer.tokens}"
            if answer.error is None and len(answer.pieces) < 2:
                answer.error = "all tokens arrived in one piece, so their times are not known"

        await asyncio.gather(*(one(body, answer) for body, answer in zip(bodies, answers, strict=True)))
    return answers


async def _send(session: Any, url: str, body: Mapping[str, Any], answer: Answer, started: float) -> None:
    """Send one request and read its stream of server-sent events."""
    async with session.post(url, json=body) as response:
        if response.status != 200:
            answer.error = f"HTTP {response.status}: {(await response.text())[:300]}"
            return
        async for line in response.content:
            now = perf_counter() - started
            _, found, data = line.decode().partition("data: ")
            if not found or data.strip() == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                answer.error = f"in the stream: {event['error']}"[:300]
                return
            count = sum(len(choice.get("token_ids") or ()) for choice in event["choices"])
            if count:
                answer.pieces.append((now, count))
