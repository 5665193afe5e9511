"""How an answer to a viewer is timed; the timing of a real server is run by hand."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest

import viewer_answers
from sere.errors import ServerError
from sere.integrations.vllm.live.page import LIVE
from tests.support.live_page import Page, serving

TWO = [{"at": 4.5}, {"at": 5.5}]


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(viewer_answers, "sleep", found.append)
    return found


def page_with(*points: list[dict[str, float]]) -> Page:
    """A page that has these points for those who ask once an idle engine's answer is settled."""
    page = Page()
    page.points = [[]] * viewer_answers.LOOKS + list(points)
    return page


def server_of(page: Page, **others: Any) -> Any:
    """A server with such a page."""
    return SimpleNamespace(url=page.url.removesuffix("/sere/live"), pid=os.getpid(), **others)


def test_processor_time_is_per_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process that answers, and apart from it of the others, in milliseconds for each batch."""
    page = page_with(TWO, [], [], [], TWO)
    own, everything = iter([1.0, 1.3, 2.0, 2.6]), iter([5.0, 5.36, 7.0, 7.6])
    monkeypatch.setattr(viewer_answers, "perf_counter", iter([10.0, 10.9, 20.0, 21.8]).__next__)
    monkeypatch.setattr(viewer_answers, "first_process_s", lambda _server: next(own))
    with serving(page):
        found = viewer_answers.answers_ms(server_of(page, processor_s=everything.__next__), 3, 2)
    assert found["answer_ms"] == pytest.approx([100.0, 200.0])
    assert found["answer_others_ms"] == pytest.approx([20.0, 0.0], abs=1e-9)
    assert found["answer_wall_ms"] == pytest.approx([300.0, 600.0])


def test_answers_are_those_of_a_viewer(slept: list[float]) -> None:
    """Once the engine is asked no more; then in a row, over one connection, each with the newest point."""
    page = page_with(TWO)
    with serving(page):
        viewer_answers.answers_ms(server_of(page, processor_s=time.process_time), 3, 1)
    looks = viewer_answers.LOOKS
    assert slept == [1.0] * looks
    assert page.asked == [f"{LIVE}?since={since}" for since in ["0.000"] * (looks + 1) + ["4.500"] * 3]
    assert len(page.connections) == 1


def test_the_first_process_is_read() -> None:
    """In seconds, to ticks of the system's clock."""
    server: Any = SimpleNamespace(pid=os.getpid())
    before, began = viewer_answers.first_process_s(server), time.process_time()
    while time.process_time() < began + 0.2:
        pass
    spent = time.process_time() - began
    assert viewer_answers.first_process_s(server) - before == pytest.approx(spent, abs=0.05)


@pytest.mark.parametrize(
    ("good", "points", "said"),
    [
        (100, [{"at": 4.5}], "expected at least 2 points of the lines, got 1"),
        (viewer_answers.LOOKS + 2, TWO, "expected an answer with status 200, got 503"),
    ],
    ids=["nobody had looked", "a refusal"],
)
def test_a_server_without_answers_fails(good: int, points: list[dict[str, float]], said: str) -> None:
    """What it said is in the error."""
    page = page_with(points)
    page.good = good
    with serving(page), pytest.raises(ServerError, match=said):
        viewer_answers.answers_ms(server_of(page, processor_s=time.process_time), 3, 1)
