"""The viewers of a timing, as they ask a server that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import viewer_process
from tests.support.live_page import Page, serving
from tests.support.patience import HANGS_S

SCRIPT = Path(viewer_process.__file__)


def until_failed(page: Page, monkeypatch: pytest.MonkeyPatch) -> tuple[viewer_process.Viewer, list[float]]:
    """Let one viewer look until the page answers well no more; also return how long it waited each time."""
    slept: list[float] = []
    with serving(page), monkeypatch.context() as patched:
        patched.setattr(viewer_process, "time", type("Time", (), {"sleep": staticmethod(slept.append)}))
        viewer = viewer_process.Viewer(page.url)
        viewer.run()
    return viewer, slept


def test_a_viewer_asks_once_a_second_for_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page does, over one connection: only points after the last one, from which on it asks again."""
    page = Page(good=4)
    page.points = [[], [{"at": 4.5}], [], [{"at": 6.0}]]
    viewer, slept = until_failed(page, monkeypatch)
    since = [path.partition("?since=")[2] for path in page.asked]
    assert since == ["0.000", "0.000", "4.500", "4.500", "6.000"]
    assert slept == [0.0, *[1.0] * 4]
    assert (viewer.answers, len(page.connections)) == (4, 1)
    assert viewer.failed is not None
    assert "expected an answer with status 200, got 503" in viewer.failed
    assert viewer.begun.is_set()


def test_a_connection_that_the_server_has_closed_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word, as servers do with connections that rest."""
    page = Page(good=3, close=True)
    viewer, _ = until_failed(page, monkeypatch)
    assert (viewer.answers, len(page.connections)) == (3, 4)


def test_the_process_imports_little() -> None:
    """Nothing but the standard library, so that it begins at once and leaves the processor to the server."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import viewer_process"
    command = [sys.executable, "-I", "-S", "-c", f"{code}; print(*sys.modules)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in found.stdout.split()}
    assert "http" in names
    assert names <= {*sys.stdlib_module_names, "viewer_process", "__main__"}


def test_the_process_ends_with_its_input() -> None:
    """It says what it has seen once all have begun or failed, and for each line that it reads."""
    with serving(Page(good=1)) as page:
        command = [sys.executable, "-I", str(SCRIPT), page.url, "2"]
        done = subprocess.run(
            command, input="\n", capture_output=True, text=True, check=True, timeout=HANGS_S
        )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["answers"] == second["answers"] == [1, 0]
    assert len(first["failed"]) == 1
