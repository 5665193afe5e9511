"""``sere top``: figures once, as JSON, for pipes, narrow terminals and without colors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from rich.console import Console

from sere.cli import main, top
from sere.cli.top_view import lost, sparkline, view
from sere.errors import ServerError
from sere.integrations.vllm.live import fetch
from sere.integrations.vllm.live.view import Live
from sere.integrations.vllm.step_counts import StepCounts
from tests.support.vllm.live import joined


def answer(*answers: dict[str, Any]) -> Any:
    live = Live("tiny")
    for at, one in enumerate(answers):
        live.add(one, float(at))
    return json.loads(live.body())


FOUND = answer(joined(0, tier="safe", unseen=1), joined(5, tier="safe", unseen=1))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A server that has the figures; the list fills with what it was asked."""
    seen: list[Any] = []

    class Server(nullcontext[Any]):
        def __init__(self, *given: Any) -> None:
            super().__init__(self)
            self.given = given

        def fetch(self, since: float = 0.0) -> Any:
            seen.append((*self.given, since))
            return FOUND

    monkeypatch.setattr(fetch, "LiveServer", Server)
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    return seen


def text(found: Any, *, width: int = 80, height: int = 40, fit: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width, height=height)
    with console.capture() as captured:
        console.print(view(found, console, fit=fit))
    return captured.get()


def test_once(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are on stdout, nothing is on stderr, and no escape sequence is in a pipe."""
    assert main(["top", "127.0.0.1:8000", "--once"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "sere tiny  on, tier safe" in out
    assert "8.0 -> 4.0 (last 1 s)" in out
    assert "up to 1.67x, from bytes of weights, not measured" in out
    assert "never saw a step: layer 2" in out
    assert out.count("nothing was re-routed") == 1
    assert asked == [("http://127.0.0.1:8000/v1/sere/live", "mine", 0.0)]


def test_json(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """--once --json prints what the server said as one line."""
    assert main(["top", "127.0.0.1:8000", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


def test_json_each_second(
    asked: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--json alone prints a line each second until it is interrupted."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top.time, "sleep", sleep)
    assert main(["top", "127.0.0.1:8000", "--json"]) == 130
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert slept == [1.0, 1.0, 1.0]
    assert [since for _, _, since in asked] == [0.0, 1.0, 1.0]


def test_an_engine_that_nobody_watched_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer knows nothing of the last seconds."""
    answers: Iterator[Any] = iter([answer(joined(5)), FOUND])
    monkeypatch.setattr(top.time, "sleep", lambda _: None)
    assert top._once(lambda _: next(answers)) is FOUND


def test_points_of_a_server_that_was_started_again() -> None:
    """New points follow those that are there; those of another run of the server replace them."""
    live, asked = Live(), []

    def ask(since: float) -> Any:
        asked.append(since)
        return json.loads(live.body(since))

    for at in range(3):
        live.add(joined(at), float(at))
    found = ask(0.0)
    live.add(joined(3), 3.0)
    found = top._newer(found, ask)
    assert [one["at"] for one in found["points"]] == [1.0, 2.0, 3.0]
    live = Live()
    for at in (60, 61):
        live.add(joined(at), float(at))
    found = top._newer(found, ask)
    assert [one["at"] for one in found["points"]] == [61.0]
    assert asked == [0.0, 2.0, 3.0, 0.0]


def test_each_line_has_the_points_that_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that was started again all points are new; an answer without a point changes nothing."""
    monkeypatch.setattr(top.time, "sleep", lambda _: None)
    live = Live()
    asked: list[float] = []

    def ask(since: float) -> Any:
        asked.append(since)
        return json.loads(live.body(since))

    live.add(joined(0), 0.0)
    live.add(joined(1), 1.0)
    lines = top._lines(ask, once=False)
    found = [next(lines), next(lines)]
    live.add(joined(2), 2.0)
    found.append(next(lines))
    live = Live()
    live.add(joined(0), 60.0)
    found.append(next(lines))
    live.add(joined(1), 61.0)
    found.append(next(lines))
    assert [[one["at"] for one in line["points"]] for line in found] == [[1.0], [], [2.0], [], [61.0]]
    assert asked == [0.0, 1.0, 1.0, 2.0, 0.0, 0.0]


def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is not there is one line on stderr, and exit code 1."""
    assert main(["top", "127.0.0.1:1", "--once"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "is it running?" in err


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no address is refused as wrong use."""
    assert main(["top", "file:///etc", "--once"]) == 2
    assert "expected a server's address" in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Bars and lines use the room that there is, and each layer keeps its number and its columns."""
    shown = text(FOUND, width=width)
    assert max(map(len, shown.splitlines())) <= width
    assert re.search(r"^ +1 +█+░+ +8\.0 +4\.0 +50 %", shown, re.MULTILINE)


def test_plain_signs_where_others_cannot_be_shown() -> None:
    """In ASCII the bars are of signs that it has."""
    shown = text(FOUND, encoding="ascii")
    assert shown.isascii()
    assert "###" in shown
    assert "█" in text(FOUND)


@pytest.mark.parametrize("no_color", [False, True])
def test_colors_follow_no_color(no_color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there are colors, unless NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    raw = io.StringIO()
    console = Console(file=raw, force_terminal=True, width=80, color_system="standard")
    console.print(view(FOUND, console))
    assert ("\x1b[36m" in raw.getvalue()) is not no_color


def test_a_low_terminal_shows_the_first_layers() -> None:
    """What has no room is counted."""
    found = answer(joined(0, layers=60), joined(5, layers=60))
    shown = text(found, height=30, fit=True)
    assert len(shown.splitlines()) <= 30
    assert "more layers" in shown
    assert "more layers" not in text(found, height=30)


@pytest.mark.parametrize(
    ("height", "told", "table"),
    [(24, 1, False), (30, 1, False), (33, 3, False), (36, 3, True), (40, 6, True)],
)
def test_the_newest_change_has_room(height: int, told: int, table: bool) -> None:
    """However low the terminal is, what changed last is there, and four layers; more where there is room."""
    switched = [joined(at, layers=60) | {"enabled": at % 2 == 0} for at in range(7)]
    found = answer(*switched, joined(12, layers=60))
    shown = text(found, height=height, fit=True)
    assert len(shown.splitlines()) <= height
    assert len(re.findall(r"^ +\d+ +█+░+ +8\.0 ", shown, re.MULTILINE)) >= 4
    assert shown.count("re-routing: ") == told
    assert ("abc, tiers safe, fast" in shown) is table


def test_steps_by_kind_and_shares_over_time() -> None:
    """Steps per second by kind, and lines of what the page draws, each with its last value."""
    later = joined(5) | {"steps": StepCounts(rerouted=5, mixed=2).to_mapping()}
    shown = text(answer(joined(0), later))
    assert "steps per second   re-routed 5.0, mixed with prompts 2.0" in shown
    assert re.search(r"^slots re-routed +█ 50\.0 %$", shown, re.MULTILINE)
    assert re.search(r"^re-routed steps +█ 5\.0/s$", shown, re.MULTILINE)
    assert re.search(r"^other steps +█ 2\.0/s$", shown, re.MULTILINE)


@pytest.mark.parametrize("processes", [1, 4])
def test_of_several_server_processes_one_is_shown(processes: int) -> None:
    """Another process has seen other lines and changes; a server with one process needs no such line."""
    found = FOUND | {"now": FOUND["now"] | {"server_processes": processes}}
    assert ("1 of 4 server processes" in text(found)) is (processes > 1)


def test_a_server_that_was_lost_keeps_its_figures() -> None:
    """While it does not answer the last figures stay, below why."""
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(lost(ServerError("gone"), FOUND, console))
    shown = captured.get()
    assert "gone" in shown
    assert "8.0 -> 4.0" in shown


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 1, 2], 10, "▁▅█"),
        ([1, None, 1], 10, "█ █"),
        ([0, 0, 4, 4], 2, "▁█"),
        ([0, 0], 5, "▁▁"),
        ([], 5, ""),
    ],
    ids=["levels", "gap", "means", "zeros", "none"],
)
def test_sparkline(values: list[float | None], width: int, line: str) -> None:
    """Heights are shares of the largest value; of many values each sign is a mean; a gap is a space."""
    assert sparkline(values, width) == line
