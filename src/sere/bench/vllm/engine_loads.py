"""What an engine is given in one timed block: which requests arrive when, and what of them is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

Measure = Literal["tpot", "ttft", "total"]
"""What a block's time is: a decode step's, that until a request's first token, or that of all requests."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a block.

    Attributes:
        arrives: Number of the engine's step before which it arrives.
        prompt: Tokens of its prompt.
        tokens: New tokens.
    """

    arrives: int
    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The requests of a block.

    Attributes:
        label: What the load is called, e.g. ``B=8``.
        measure: What of it is timed.
        requests: In the order of their arrival.
    """

    label: str
    measure: Measure
    requests: tuple[Request, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(request.prompt for request in self.requests)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        return max(request.prompt + request.tokens for request in self.requests)

    @property
    def new_tokens(self) -> int:
        """New tokens of all requests."""
        return sum(request.tokens for request in self.requests)

    @property
    def steps(self) -> int:
        """About how many steps an engine takes for it."""
        return max(request.arrives + request.tokens for request in self.requests)

    def shortened(self, tokens: int) -> EngineLoad:
        """Return the same load with at most so many new tokens per request, to warm an engine up."""
        requests = (Request(one.arrives, one.prompt, min(tokens, one.tokens)) for one in self.requests)
        return EngineLoad(self.label, self.measure, tuple(requests))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what `to_json` described."""
        requests = tuple(Request(**one) for one in value["requests"])
        return cls(value["label"], value["measure"], requests)


def decoding(B: int, prompt: int, steps: int) -> EngineLoad:
    """Return B requests that arrive together and decode together.

    Args:
        B: Requests.
        prompt: Tokens of each prompt.
        steps: Decode steps, after the first token.
    """
    return EngineLoad(f"B={B}", "tpot", (Request(0, prompt, steps + 1),) * B)


def _first_tokens(label: str, prompt: int, requests: int) -> EngineLoad:
    """Return requests one after another: each arrives when the one before has its three tokens."""
    return EngineLoad(label, "ttft", tuple(Request(4 * index, prompt, 3) for index in range(requests)))


def _mixed() -> EngineLoad:
    """Return requests that decode while prompts of others arrive, every eighth step."""
    decoded = [Request(0, 32, 48) for _ in range(16)]
    return EngineLoad("mixed", "total", (*decoded, *(Request(4 + 8 * index, 512, 8) for index in range(5))))


_NAMED: Sequence[Callable[[], EngineLoad]] = (
    lambda: _first_tokens("ttft-32", 32, 8),
    lambda: _first_tokens("ttft-2k", 2048, 1),
    lambda: _first_tokens("ttft-8k", 8192, 1),
    lambda: EngineLoad("prefill", "total", (Request(0, 2048, 8),) * 4),
    _mixed,
)

NAMED_LOADS: Mapping[str, EngineLoad] = MappingProxyType(
    {load.label: load for make in _NAMED for load in [make()]}
)
"""Loads other than decoding, by name: the first token of three lengths of prompts, prompts, a mixture."""
