"""What the page and ``sere top`` are given."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from sere.integrations.vllm.live.view import Live, since_of
from tests.support.vllm.live import joined


def shown(*answers: dict[str, Any], since: float = 0.0) -> Any:
    live = Live("model")
    for at, answer in enumerate(answers):
        live.add(answer, float(at))
    return json.loads(live.body(since))


def test_what_is_shown() -> None:
    """Means of the last seconds by layer and together, and the steps since the reset."""
    found = shown(joined(0, unseen=1), joined(5, unseen=1))
    now = found["now"]
    assert (now["title"], now["at"], now["steps"]["rerouted"]) == ("model", 1.0, 5)
    assert (now["recent"]["seconds"], now["recent"]["before"], now["recent"]["after"]) == (1.0, 8, 4)
    assert now["recent"]["bytes"] == 100 * 5 * 2 * 4
    assert [layer["after"] for layer in now["layers"]] == [4, 4, None]
    assert now["unseen"] == [2]
    assert now["table"] == {"fingerprint": "abc", "tiers": ["safe", "fast"]}
    assert len(found["points"]) == 1


def test_the_estimate_is_a_ratio_of_bytes() -> None:
    """400 bytes of other weights, and 2 layers that read 8 experts of 100 bytes, or 4."""
    estimate = shown(joined(0), joined(5))["now"]["estimate"]
    assert estimate["speedup"] == pytest.approx((400 + 2 * 8 * 100) / (400 + 2 * 4 * 100), abs=1e-4)
    assert "not a measurement" in estimate["caveat"]
    assert shown(joined(5) | {"rest_bytes": None})["now"]["estimate"]["speedup"] is None


def test_without_recent_steps_all_are_shown() -> None:
    """The first answer is about all steps since the reset, and says so."""
    recent = shown(joined(5))["now"]["recent"]
    assert (recent["seconds"], recent["after"], recent["steps"]["rerouted"]) == (None, 4, 5)


def test_an_engine_without_steps() -> None:
    """Nothing is claimed of it."""
    now = shown(joined(0))["now"]
    assert now["recent"]["before"] is None
    assert now["estimate"]["speedup"] is None
    assert now["unseen"] == [0, 1]


def test_no_path_is_shown() -> None:
    """Where the table lies on the server's disk is nobody's business."""
    assert "secret" not in json.dumps(shown(joined(0), joined(5)))


def test_all_viewers_get_the_same() -> None:
    """A body is the same for whoever asks from the same moment on, from any thread."""
    live = Live()
    live.add(joined(0), 0.0)
    found: list[str] = []

    def viewer() -> None:
        found.extend(live.body() for _ in range(50))

    threads = [threading.Thread(target=viewer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert len(set(found)) == 1


def test_a_server_that_was_started_again_is_told_apart() -> None:
    """Each process names its run, the same in all its answers, so that no line leads from one to the next."""
    live = Live()
    runs = []
    for at in (0.0, 1.0):
        live.add(joined(int(at)), at)
        runs.append(json.loads(live.body())["now"]["run"])
    assert runs[0] == runs[1] != shown(joined(0))["now"]["run"]


def test_how_many_processes_answer() -> None:
    """A viewer is told whether another answer may come from a process that has seen something else."""
    live = Live(processes=4)
    live.add(joined(0), 0.0)
    assert json.loads(live.body())["now"]["server_processes"] == 4
    assert shown(joined(0))["now"]["server_processes"] == 1


def test_only_new_points_are_sent() -> None:
    """A viewer that has the first points asks for those after them."""
    assert [one["at"] for one in shown(*map(joined, range(5)), since=3.0)["points"]] == [4.0]


@pytest.mark.parametrize(("text", "at"), [(None, 0.0), ("", 0.0), ("12.5", 12.5), ("soon", 0.0)])
def test_since(text: str | None, at: float) -> None:
    """What is no moment asks for everything."""
    assert since_of(text) == at


def test_why_nothing_can_be_changed() -> None:
    """A page that may change nothing is told why."""
    live = Live(read_only="because")
    live.add(joined(0), 0.0)
    assert json.loads(live.body())["read_only"] == "because"
