"""Given continuations in an engine, without vLLM: which requests it holds, and which tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import InputError
from sere.eval import engine_likelihoods
from sere.eval.engine_likelihoods import engine_log_likelihoods
from sere.eval.likelihoods import Continuation


class Engine:
    """Stands in for vLLM's: each step decodes the next given token of each request."""

    def __init__(self) -> None:
        self.llm_engine = self
        self.texts: dict[str, tuple[list[int], list[int], list[int]]] = {}
        self.prompts: list[list[int]] = []
        self.names: list[str] = []
        self.held: list[int] = []
        self.aborted: list[str] = []

    def add_request(self, name: str, prompt: dict[str, list[int]], given: Sequence[int]) -> None:
        """Take a request."""
        assert name not in self.texts
        self.names.append(name)
        self.prompts.append(prompt["prompt_token_ids"])
        self.texts[name] = (prompt["prompt_token_ids"], list(given), [])

    def abort_request(self, names: list[str]) -> None:
        """Leave off requests."""
        self.aborted = names
        for name in names:
            del self.texts[name]

    def step(self) -> list[Any]:
        """Decode a token of each request."""
        self.held.append(len(self.texts))
        ended = []
        for name, (_, given, chosen) in list(self.texts.items()):
            chosen.append(given[len(chosen)])
            if len(chosen) == len(given):
                logprobs = [{token: logprob(token), 99: logprob(9)} for token in chosen]
                completion = SimpleNamespace(token_ids=tuple(chosen), logprobs=logprobs)
                ended.append(SimpleNamespace(request_id=name, finished=True, outputs=[completion]))
                del self.texts[name]
        return [*ended, SimpleNamespace(request_id="?", finished=False)]


def logprob(token: int) -> Any:
    """A token's own log-probability: the larger the token, the smaller."""
    return SimpleNamespace(logprob=nan if token == 0 else -float(token))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose requests' parameters are the given tokens."""
    monkeypatch.setattr(engine_likelihoods, "_forced", list)
    return Engine()


ASKED = [
    Continuation([50, 51, 52], [3, 4]),
    Continuation([60], [5, 6]),
    Continuation([70, 71], [10]),
    Continuation([80], [2]),
    Continuation([90, 91], [8, 7, 6, 5, 4, 3, 2, 1]),
]


@pytest.mark.parametrize("concurrency", [1, 2, 9])
def test_tokens_of_continuations_count(engine: Engine, concurrency: int) -> None:
    """The context's last token is forced, but not scored; the order of the results is that of the texts."""
    finished: list[None] = []
    found = engine_log_likelihoods(
        engine, ASKED, concurrency=concurrency, on_finished=lambda: finished.append(None)
    )
    assert [one.nats for one in found] == [-7, -11, -10, -2, -36]
    assert [one.greedy for one in found] == [True, True, False, True, True]
    assert len(finished) == len(ASKED)
    assert sorted(engine.prompts[: len(ASKED)]) == [[50, 51], [60], [70], [80], [90]]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
def test_the_engine_is_always_full(engine: Engine, concurrency: int) -> None:
    """Texts are decoded once more until the last scored one has ended; what is left is aborted."""
    engine_log_likelihoods(engine, ASKED, concurrency=concurrency)
    assert set(engine.held) == {concurrency}
    assert len(engine.aborted) < concurrency
    assert not engine.texts


def test_nothing_to_score(engine: Engine) -> None:
    """No continuation gives no result, and no step."""
    assert engine_log_likelihoods(engine, [], concurrency=4) == []
    assert engine.held == []


def test_an_error_leaves_no_request_in_the_engine(engine: Engine) -> None:
    """The next call gets outputs of its own requests alone, under names that were not used before."""
    with pytest.raises(InputError, match="logits are not finite numbers"):
        engine_log_likelihoods(engine, [Continuation([5], [0]), *ASKED], concurrency=6)
    assert not engine.texts
    found = engine_log_likelihoods(engine, ASKED, concurrency=2)
    assert [one.nats for one in found] == [-7, -11, -10, -2, -36]
    assert len(set(engine.names)) == len(engine.names)


def test_logits_that_are_no_numbers(engine: Engine) -> None:
    """As in Transformers, they are refused; a text without tokens is, too."""
    with pytest.raises(InputError, match="logits are not finite numbers"):
        engine_log_likelihoods(engine, [Continuation([5], [0])], concurrency=1)
    with pytest.raises(InputError, match="at least one token of context and of continuation"):
        engine_log_likelihoods(engine, [Continuation([5], [])], concurrency=1)
