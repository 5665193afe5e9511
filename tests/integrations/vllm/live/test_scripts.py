"""The page's scripts, in a real browser, with answers that a test chooses: no engine, and no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sere.integrations.vllm.live.page import LIVE, PATH, page
from sere.integrations.vllm.live.view import Live
from tests.support.browser import browser, until, watched
from tests.support.vllm.live import joined

URL = "http://sere.invalid"
BEGUN = 1_700_000_000.0
# Of the first chart: where its line begins, from 0 on the left to 1, and the texts below it.
DRAWN = """() => {
  const chart = document.querySelector('#lines svg'), grid = chart.querySelector('.grid');
  const [left, right] = ['x1', 'x2'].map((name) => Number(grid.getAttribute(name)));
  const texts = [...chart.children].filter((one) => one.tagName === 'text').map((one) => one.textContent);
  const begin = parseFloat(chart.querySelector('.line').getAttribute('d').slice(1));
  return [(begin - left) / (right - left), texts];
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@contextmanager
def opened(running: Any, answer: Callable[[Any], None]) -> Iterator[tuple[Any, list[str]]]:
    """Open the page; a question for its figures is given to a test. Yields what `watched` does."""
    document, headers = page()
    context = running.new_context()
    context.route(f"{URL}{PATH}", lambda route: route.fulfill(body=document, headers=headers))
    context.route(f"{URL}{LIVE}*", answer)
    with watched(context, URL) as found:
        yield found
    context.close()


@contextmanager
def shown(running: Any, moments: Sequence[int], **changes: Any) -> Iterator[tuple[Any, Live]]:
    """Open the page of an engine that takes a step a second, seen so many seconds after its start."""
    live = Live()
    for at in moments:
        live.add(joined(at) | changes, BEGUN + at)

    def answer(route: Any) -> None:
        (since,) = parse_qs(urlsplit(route.request.url).query)["since"]
        route.fulfill(body=live.body(float(since)))

    with opened(running, answer) as (drawn, complaints):
        until(drawn, "document.querySelector('#lines svg') !== null")
        yield drawn, live
        assert complaints == []


@pytest.mark.parametrize(
    ("moments", "seconds", "begin", "texts"),
    [
        (range(0, 31, 10), 120, 1 - 20 / 120, ["now", "−1 min", "−2 min"]),
        (range(0, 301, 10), 300, 10 / 300, ["now", "−2 min", "−4 min"]),
        (range(0, 2001, 10), 900, 0.0, ["now", "−5 min", "−10 min", "−15 min"]),
        ([0, *range(500, 541, 10)], 120, 1 - 30 / 120, ["now", "−1 min", "−2 min"]),
    ],
    ids=["two minutes at least", "from the first point", "what is kept at most", "no gap before it"],
)
def test_the_axis_begins_at_the_first_point(
    chromium: Any, moments: Sequence[int], seconds: int, begin: float, texts: list[str]
) -> None:
    """All charts have one axis: 2 minutes at least, so that 30 seconds are no sliver, and 15 at most."""
    with shown(chromium, moments) as (drawn, _):
        charts = drawn.get_by_role("slider").all()
        assert len(charts) == 6
        assert {chart.get_attribute("aria-valuemin") for chart in charts} == {str(-seconds)}
        found = drawn.evaluate(DRAWN)
        assert found[0] == pytest.approx(begin, abs=0.002)
        assert found[1] == texts


def test_bytes_not_read_are_a_line(chromium: Any) -> None:
    """4 experts of 100 bytes fewer in each of 2 layers, once a second; no line where no size is known."""
    figure = "figure[aria-label='Weights not read']"
    for size, text, pieces in ((100, "800 B/s", 2), (None, "–", 0)):
        with shown(chromium, range(0, 31, 10), expert_bytes=size) as (drawn, _):
            assert drawn.inner_text(f"{figure} .value") == text
            assert drawn.locator(f"{figure} .line").get_attribute("d").count("L") == pieces


def test_what_was_chosen_stays_on_the_axis(chromium: Any) -> None:
    """Home chooses the beginning; when time goes on, its mark does not leave the chart."""
    with shown(chromium, range(0, 31, 10)) as (drawn, live):
        chart = drawn.get_by_role("slider").first
        chart.press("Home")
        live.add(joined(40), BEGUN + 40)
        until(drawn, "document.querySelector('#lines .line').getAttribute('d').split('L').length === 4")
        assert chart.get_attribute("aria-valuenow") == chart.get_attribute("aria-valuemin") == "-120"
        assert float(chart.locator(".cross").get_attribute("x1")) == 38


def test_a_key_is_not_refused_for_an_earlier_question(chromium: Any) -> None:
    """What was asked without the key, and is answered after it was typed, says nothing of that key."""
    live, early = Live(), list[Any]()
    live.add(joined(1), BEGUN)

    def answer(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.fulfill(body=live.body())
        elif early:
            route.fulfill(status=401)
        else:
            early.append(route)

    with opened(chromium, answer) as (asking, _):
        # The form is there once a first question was refused; the second one waits for its answer.
        while not early:
            asking.wait_for_timeout(50)
        early.pop().fulfill(status=401)
        asking.wait_for_selector("#server-key:visible")
        while not early:
            asking.wait_for_timeout(50)
        asking.fill("#server-key", "right")
        asking.press("#server-key", "Enter")
        early[0].fulfill(status=401)
        asking.wait_for_selector("#main:visible, #banner:visible")
        assert asking.is_visible("#main")
