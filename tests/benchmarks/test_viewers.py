"""What is said of the cost of viewers, and who counts as one; the timing itself is run by hand."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import viewers
from sere.engines.patience import Patience
from sere.errors import ServerError
from tests.support.live_page import Page, serving
from tests.support.patience import HANGS_S


def rounds(**changes: Any) -> dict[str, dict[int, list[float]]]:
    """Six rounds with 0, 1 and 20 viewers."""
    found: dict[str, dict[int, list[float]]] = {
        "tokens_per_s": {
            0: [100.0, 200.0, 50.0, 100.0, 100.0, 200.0],
            1: [99.0, 198.0, 49.5, 99.0, 99.0, 198.0],
            20: [98.0, 190.0, 48.0, 97.0, 98.0, 194.0],
        },
        "processor_s_per_s": {0: [0.01, 0.02] * 3, 1: [0.015, 0.025] * 3, 20: [0.03, 0.04] * 3},
        "answers": {0: [0] * 6, 1: [6, 7] * 3, 20: [120] * 6},
        "viewers_processor_s_per_s": {0: [0.0] * 6, 1: [0.001] * 6, 20: [0.0125] * 6},
    }
    return found | changes


def test_the_table_is_that_of_the_documents() -> None:
    """Also of numbers that are no record yet: median rate, median ratio with interval, processor times."""
    text = viewers.render(rounds())
    head, _, *rows = [line.replace("|", " ").split() for line in text.splitlines() if line.startswith("|")]
    assert " ".join(head) == "viewers tokens/s, median of 6 rounds to no viewer 95 % % of a core 95 %"
    assert " ".join(rows[0]) == "0 100.0"
    assert " ".join(rows[1]) == "1 99.0 0.9900 0.9900 to 0.9900 0.50 0.50 to 0.50"
    assert " ".join(rows[2]) == "20 98.0 0.9700 0.9500 to 0.9800 2.00 2.00 to 2.00"
    assert "20 viewers had 120 answers" in text


def test_one_round_has_no_interval() -> None:
    """Nothing is said of what a single round cannot tell."""
    first = {name: {count: found[:1] for count, found in of.items()} for name, of in rounds().items()}
    last = viewers.render(first).splitlines()[4]
    assert last.replace("|", " ").split() == ["20", "98.0", "0.9800", "2.00"]


def test_a_server_at_rest_takes_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once the server has come to rest, and is per second of the clock."""
    slept: list[float] = []
    monkeypatch.setattr(viewers.time, "sleep", slept.append)
    monkeypatch.setattr(viewers, "perf_counter", iter([100.0, 110.0]).__next__)
    server: Any = SimpleNamespace(processor_s=iter([7.0, 9.0]).__next__)
    assert viewers._idle(server, 10.0) == pytest.approx(0.2)
    assert slept == [viewers.SETTLE_S, 10.0]


def test_questions_reach_the_engine() -> None:
    """Each is a reset, which no kept answer serves; one that is refused ends the run."""
    asked: list[str] = []

    def post(path: str, body: Any) -> tuple[int, Any]:
        asked.append(path)
        return (200 if len(asked) < 4 else 401), body

    server: Any = SimpleNamespace(post=post)
    assert len(viewers.questions_ms(server, 3)) == 3
    assert set(asked) == {"/v1/sere/reset"}
    with pytest.raises(ServerError, match="expected status 200 of a reset, got 401"):
        viewers.questions_ms(server, 1)


def test_a_load_waits_for_all_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has had an answer when the block begins, however long it takes; those after it are counted."""
    monkeypatch.setattr(viewers, "SETTLE_S", 0.0)
    with serving(Page(wait_s=0.5)) as page, viewers.looking(page.url, 3) as found:
        assert len(page.connections) == 3
        before = found.seen()
        assert min(before["answers"]) >= 1
        patience = Patience(HANGS_S)
        while sum((after := found.seen())["answers"]) < sum(before["answers"]) + 3:
            assert patience.lasts()
            time.sleep(0.05)
        assert viewers.enough_answers(before, after, 0.0) >= 3
        assert after["processor_s"] >= before["processor_s"] > 0


def test_a_viewer_that_fails_fails_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first answer, and after it."""
    monkeypatch.setattr(viewers, "SETTLE_S", 0.0)
    with (
        serving(Page(good=1)) as page,
        pytest.raises(ServerError, match=r"1 failed.*got 503"),
        viewers.looking(page.url, 2),
    ):
        raise AssertionError("the block has begun")
    one: dict[str, Any] = {"answers": [3, 3], "failed": []}
    two: dict[str, Any] = {"answers": [9, 4], "failed": ["OSError: why"]}
    with pytest.raises(ServerError, match="1 failed, the first with: OSError: why"):
        viewers.enough_answers(one, two, 1.0)


def test_too_few_answers_fail_the_round() -> None:
    """To a single viewer; half an answer a second is enough, and without viewers there are none."""
    before: dict[str, Any] = {"answers": [1, 1], "failed": []}
    with pytest.raises(ServerError, match=r"at least 3 answers to each in 6\.4 s, got 2"):
        viewers.enough_answers(before, before | {"answers": [9, 3]}, 6.4)
    assert viewers.enough_answers(before, before | {"answers": [9, 4]}, 6.4) == 11
    nobody = viewers.Viewers(None).seen()
    assert viewers.enough_answers(nobody, nobody, 6.4) == 0


def test_viewers_whose_process_has_ended_fail_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what it says."""
    monkeypatch.setattr(viewers, "SETTLE_S", 0.0)
    with serving(Page()) as page, viewers.looking(page.url, 1) as found:
        assert found._process is not None
        found._process.kill()
        found._process.wait()
        with pytest.raises(ServerError, match="expected a line from their process, which has ended with -9"):
            found.seen()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--viewers 1 20", "--viewers: expected different numbers of at least 0, and 0 among them"),
        ("--viewers 0 0", "got 0 0"),
        ("--viewers 0 -1", "got 0 -1"),
        ("--rounds 0", "--rounds: expected at least 1, got 0"),
        ("--at-once 0", "--at-once: expected at least 1, got 0"),
        ("--tokens 300", "--tokens: expected at most 248, got 300"),
        ("--idle 0", "--idle: expected seconds above 0, got 0"),
        ("--idle nan", "--idle: expected seconds above 0, got nan"),
    ],
)
def test_bad_options_are_refused_before_the_server_starts(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With code 2 and what was expected."""
    with pytest.raises(SystemExit) as ended:
        viewers.arguments(given.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_record_that_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after the rounds."""
    with pytest.raises(SystemExit):
        viewers.arguments(["--out", str(tmp_path)])
    assert "--out: " in capsys.readouterr().err
    assert viewers.arguments(["--out", str(tmp_path / "new.jsonl")]).rounds == 10
    assert list(tmp_path.iterdir()) == []
