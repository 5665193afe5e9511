"""What the load generator of ``sere bench serve --server`` sends, and how it counts what comes back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.vllm.load_generator import Load, run_load
from sere.errors import InputError
from tests.support.vllm.stub import CUT, REFUSED, SHORT, SPOILED, TOKENS, stub

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_arrivals() -> None:
    """An open loop's arrivals start at 0, never go back, keep their rate, and depend on the seed alone."""
    load = Load(request_rate=4.0)
    times = load.arrivals(4000, "a")
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] / 3999 == pytest.approx(1 / 4, rel=0.05)
    gaps = sorted(after - before for before, after in pairwise(times))
    # Exponential: the median is ln 2 of the mean.
    assert gaps[2000] == pytest.approx(0.693 / 4, rel=0.1)
    assert load.arrivals(4000, "a") == times
    assert load.arrivals(4000, "b") != times
    assert Load(concurrency=3).arrivals(5, "a") == [0] * 5


@pytest.mark.parametrize(
    "values", [{}, {"concurrency": 1, "request_rate": 1.0}, {"concurrency": 0}, {"request_rate": -1.0}]
)
def test_refused_loads(values: dict[str, Any]) -> None:
    """A load has one of the two, and it is positive."""
    with pytest.raises(InputError, match="either a concurrency of at least 1 or a request rate above 0"):
        Load(**values)


def test_closed_loop_keeps_its_concurrency() -> None:
    """A closed loop has as many requests under way as it says, and never more."""
    with stub(hold=3) as server:
        answers = run_load(server.url, "m", [[i] for i in range(9)], TOKENS, Load(concurrency=3), seed="0")
    assert server.most == 3
    assert [answer.error for answer in answers] == [None] * 9


def test_open_loop_waits_for_nobody() -> None:
    """An open loop sends a request though none before it was answered; all have the given body."""
    with stub(hold=6) as server:
        load = Load(request_rate=200.0)
        answers = run_load(server.url, "m", [[i] for i in range(6)], TOKENS, load, seed="0")
    assert [answer.tokens for answer in answers] == [TOKENS] * 6
    assert [answer.due for answer in answers] == load.arrivals(6, "0")
    assert all(answer.ttft_ms > 0 and answer.tpot_ms > 0 for answer in answers)
    assert sorted(body["prompt"] for body in server.completions()) == [[i] for i in range(6)]
    assert all(body["ignore_eos"] and body["max_tokens"] == TOKENS for body in server.completions())


def test_failures_are_counted() -> None:
    """Refused, spoiled, short and cut answers each say so; the request beside them is whole."""
    with stub() as server:
        prompts = [[REFUSED], [SPOILED], [SHORT], [CUT], [7]]
        answers = run_load(server.url, "m", prompts, TOKENS, Load(concurrency=1), seed="0")
    errors = [answer.error or "" for answer in answers]
    assert errors[0].startswith("HTTP 503")
    assert errors[1] == "in the stream: {'message': 'spoiled'}"
    assert errors[2] == f"expected {TOKENS} tokens, got {TOKENS - 1}"
    assert errors[3].startswith("ClientPayloadError")
    assert (answers[4].error, answers[4].tokens) == (None, TOKENS)


def test_nobody_listens() -> None:
    """Without a server each request fails; nothing is raised."""
    with stub() as server:
        url = server.url
    answers = run_load(url, "m", [[1], [2]], TOKENS, Load(concurrency=2), seed="0")
    assert all("ClientConnector" in (answer.error or "") for answer in answers)
