"""The last 15 minutes: points, gaps where nobody looked, changes, resets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sere.integrations.vllm.live.history import GAP_S, KEPT_S, MOST_CHANGES, WINDOW_S, History
from sere.integrations.vllm.live.sample import Sample
from tests.support.vllm.live import joined


def history(*answers: tuple[float, dict[str, Any]]) -> History:
    found = History()
    for at, answer in answers:
        found.add(Sample.of(answer, at), answer["expert_bytes"])
    return found


def points(found: History, after: float = 0.0) -> list[Any]:
    return [json.loads(text) for text in found.points_after(after)]


def test_a_point_for_each_pair_of_answers() -> None:
    """The first answer alone says nothing about time; each further one adds what was counted since."""
    found = history((10.0, joined(0)), (11.0, joined(5)), (12.5, joined(6)))
    one, two = points(found)
    assert (one["at"], one["seconds"], one["steps"], one["gap"]) == (11.0, 1.0, {"rerouted": 5}, False)
    assert (one["before"], one["after"], one["rows"], one["rerouted"]) == (8, 4, 4, 0.5)
    assert one["bytes"] == 100 * 5 * 2 * 4
    assert (two["seconds"], two["steps"]) == (1.5, {"rerouted": 1})
    assert points(found, 11.0) == [two]
    assert points(found, 12.5) == []


def test_no_point_is_sent_twice() -> None:
    """A viewer that names the last point that it got gets only newer ones, however fine the clock is."""
    found = history((10.0, joined(0)), (11.00049, joined(5)), (12.00051, joined(6)), (13.0, joined(7)))
    every = points(found)
    for index, one in enumerate(every):
        assert points(found, one["at"]) == every[index + 1 :]


def test_without_sizes_no_bytes() -> None:
    """Where the size of an expert is not known, no bytes are claimed."""
    found = history((1.0, joined(0) | {"expert_bytes": None}), (2.0, joined(5) | {"expert_bytes": None}))
    assert points(found)[0]["bytes"] is None


@pytest.mark.parametrize(("seconds", "gap"), [(GAP_S, False), (GAP_S + 1, True)])
def test_nobody_looked(seconds: float, gap: bool) -> None:
    """A long time between two answers is a gap of the lines."""
    assert points(history((0.0, joined(0)), (seconds, joined(5))))[0]["gap"] is gap


def test_only_the_last_minutes_are_kept() -> None:
    """However long somebody looks, what is kept does not grow."""
    found = history(*((float(at), joined(at)) for at in range(int(KEPT_S) + 100)))
    assert len(points(found)) == KEPT_S + 1


def test_bars_are_of_the_last_seconds() -> None:
    """Old steps do not hide what holds now."""
    answers = [(float(at), joined(10 * at)) for at in range(40)]
    recent = history(*answers).recent()
    assert recent is not None
    assert recent[1] == WINDOW_S
    assert recent[0].by_kind()["rerouted"] == 10 * WINDOW_S


def test_no_recent_step() -> None:
    """One answer, or an engine that stands still, has no recent means."""
    assert history((1.0, joined(5))).recent() is None
    assert history((1.0, joined(5)), (2.0, joined(5))).recent() is None


def test_a_change_says_what_and_when() -> None:
    """Each setting that differs from the answer before, whoever changed it; the newest is first."""
    found = history(
        (1.0, joined(0, tier="safe")), (2.0, joined(5, tier="fast")), (60.0, joined(9) | {"enabled": False})
    )
    newest, oldest = found.changes
    assert oldest == {"at": 2.0, "after": 1.0, "what": {"tier": ["safe", "fast"]}}
    assert newest == {"at": 60.0, "after": 2.0, "what": {"enabled": [True, False], "tier": ["fast", None]}}


def test_means_never_span_a_change() -> None:
    """After a change the bars are of steps with the new settings only."""
    before = [(float(at), joined(10 * at, tier="safe")) for at in range(5)]
    # The counters go on where they were: 40 steps with 4 experts each, then 2.
    answer = joined(40, tier="fast")
    after = joined(40, tier="fast")
    for layer in after["layers"]:
        layer["counters"] = [
            a + b
            for a, b in zip(layer["counters"], joined(10, after=2)["layers"][0]["counters"], strict=True)
        ]
    recent = history(*before, (5.0, answer), (6.0, after)).recent()
    assert recent is not None
    assert recent[0].means()["after"] == 2


def test_a_reset_is_no_negative_step() -> None:
    """Counters that went down add no point; from zero on all is counted; the reset is among the changes."""
    found = history((1.0, joined(9)), (2.0, joined(3)), (3.0, joined(5)))
    assert [one["steps"] for one in points(found)] == [{"rerouted": 2}]
    assert [one["what"] for one in found.changes] == ["reset"]


def test_a_reset_that_is_noted_counts_from_zero() -> None:
    """Even if more was counted afterward than before, so that the counters do not show it."""
    found = history((1.0, joined(9)))
    found.note_reset(2.0)
    found.add(Sample.of(joined(20), 3.0), 100)
    assert points(found)[0]["steps"] == {"rerouted": 20}
    assert [one["what"] for one in found.changes] == ["reset"]


def test_changes_do_not_pile_up() -> None:
    """The last ones are kept."""
    found = history(*((float(at), joined(at, threshold=float(at))) for at in range(100)))
    assert len(found.changes) == MOST_CHANGES
    assert found.changes[0]["at"] == 99.0
