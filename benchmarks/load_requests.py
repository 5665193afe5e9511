"""The requests of a load test of ``vllm serve``, and what became of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.vllm.server import Server

REFUSED_BY_VLLM: Sequence[dict[str, Any]] = ({"max_tokens": -1}, {"temperature": -1.0})
REFUSED_BY_SERE: Sequence[dict[str, Any]] = ({"vllm_xargs": {"sere": "of"}}, {"vllm_xargs": {"sere": 0}})
PROTECTED = {"vllm_xargs": {"sere": "off"}}


@dataclass
class Load:
    """One server under load, and what became of its requests.

    Attributes:
        server: The server.
        client: The client that sends the requests.
        reroutes: Whether it is the server that re-routes, not the control.
        expected: Texts by prompt, alone in the batch and not re-routed.
        margins: By how much the best token led at each prompt's closest choice, in log-probability.
        outcomes: How many requests ended in which way.
        wrong: Descriptions of what should not have happened.
        resident: Resident bytes of all the server's processes after each stretch.
    """

    server: Server
    client: Any
    reroutes: bool
    expected: dict[str, str] = field(default_factory=dict)
    margins: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


async def one(load: Load, gate: asyncio.Semaphore, dice: float, prompt: str) -> None:
    """Send one request of a kind that the dice choose; note what became of it."""
    async with gate:
        try:
            if dice < 0.10:
                await _abort(load, prompt)
            elif dice < 0.15:
                await _malformed(load, prompt, int(dice * 10_000))
            elif dice < 0.35:
                _compare(load, "protected", prompt, await ask_text(load.client, prompt, PROTECTED))
            elif load.reroutes:
                await ask_text(load.client, prompt, {})
                load.outcomes["answered"] += 1
            else:
                _compare(load, "answered", prompt, await ask_text(load.client, prompt, {}))
        except Exception as error:
            load.wrong.append(f"{type(error).__name__}: {error} ({error.__cause__!r})"[:300])


def _compare(load: Load, kind: str, prompt: str, text: str) -> None:
    load.outcomes[kind] += 1
    load.outcomes["compared"] += 1
    if text != load.expected[prompt]:
        load.outcomes["other text"] += 1
        load.wrong.append(f"{kind}, but another text than alone and off: {prompt!r}")


async def ask_text(client: Any, prompt: str, extra: dict[str, Any]) -> str:
    """Return the text of one answer."""
    return str((await _ask(client, prompt, extra)).choices[0].text)


async def _ask(client: Any, prompt: str, extra: dict[str, Any]) -> Any:
    answer = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=16, temperature=0, extra_body={"ignore_eos": True} | extra
    )
    if answer.usage.completion_tokens != 16:
        raise RuntimeError(f"expected 16 tokens, got {answer.usage.completion_tokens}")
    return answer


async def _abort(load: Load, prompt: str) -> None:
    """Start a long answer and hang up after a few pieces."""
    stream = await load.client.completions.create(
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
    load.outcomes["aborted"] += 1


async def _malformed(load: Load, prompt: str, number: int) -> None:
    """Send what must be refused."""
    from openai import BadRequestError

    kinds = (*REFUSED_BY_VLLM, *REFUSED_BY_SERE) if load.reroutes else REFUSED_BY_VLLM
    change = kinds[number % len(kinds)]
    try:
        await load.client.completions.create(model="tiny", prompt=prompt, extra_body=change)
    except BadRequestError:
        load.outcomes["refused"] += 1
    else:
        load.wrong.append(f"accepted although malformed: {change}")


async def ask_margin(client: Any, prompt: str) -> float:
    """Return the lead of the best token over the second, in log-probability, at the closest choice."""
    answer = await _ask(client, prompt, {"logprobs": 2, "return_tokens_as_token_ids": True})
    chosen = [sorted(tokens.values()) for tokens in answer.choices[0].logprobs.top_logprobs]
    return float(min(values[-1] - values[-2] for values in chosen))
