"""The clients of ``fuzz_http.py``: one reads tokens, one sends requests, one watches the machine."""

from __future__ import annotations

import http.client
import json
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from engine_pauses import PAUSE_MS, spread_ms
from sere.engines.server import Server

PATIENCE_S = 300.0
WATCH_S = 0.005
# Naps that are late by less are no waits.
LATE_S = 0.005
PROMPT = "add 123 456 = "


class Gap(NamedTuple):
    """The time between two tokens of one answer, in seconds of one clock."""

    began: float
    ended: float

    @property
    def ms(self) -> float:
        """Its length."""
        return 1000 * (self.ended - self.began)


@dataclass
class Stream:
    """One client that reads tokens all the while.

    Attributes:
        server: The server.
        wrong: What should not have happened.
    """

    server: Server
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def reading(self, gaps: list[Gap]) -> Iterator[None]:
        """Read answers until the block ends; add the times between two pieces of one answer."""
        with _in_thread(lambda stop: self._read(stop, gaps)):
            yield

    def _read(self, stop: threading.Event, gaps: list[Gap]) -> None:
        while not stop.is_set():
            try:
                self._read_answer(gaps)
            except (http.client.HTTPException, OSError) as error:
                self.wrong.append(f"the stream broke off: {type(error).__name__}: {error}")

    def _read_answer(self, gaps: list[Gap]) -> None:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True,
                "stream": True}  # fmt: skip
        connection = connect(self.server.url)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer, last, pieces = connection.getresponse(), None, 0
        while line := answer.readline():
            if line.startswith(b"data: {"):
                now = perf_counter()
                if last is not None:
                    gaps.append(Gap(last, now))
                last, pieces = now, pieces + 1
        connection.close()
        if answer.status != 200 or not pieces:
            self.wrong.append(f"the stream ended with status {answer.status} after {pieces} pieces")


class Watch:
    """Sees when this process stands still: the machine lets it wait, or another of its threads keeps on.

    Attributes:
        waits: From when a nap of `WATCH_S` should have ended to when it did, of those that ended late.
    """

    def __init__(self) -> None:
        self.waits: list[Gap] = []

    @property
    def longest_ms(self) -> float:
        """The longest wait."""
        return max((wait.ms for wait in self.waits), default=0.0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        with _in_thread(self._watch):
            yield

    def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            due = perf_counter() + WATCH_S
            time.sleep(WATCH_S)
            woken = perf_counter()
            if woken - due > LATE_S:
                self.waits.append(Gap(due, woken))

    def own_ms(self, gaps: Sequence[Gap]) -> list[float]:
        """Return the lengths of gaps in milliseconds, less the time in which this process stood still."""
        starts = [wait.began for wait in self.waits]
        found = []
        for gap in gaps:
            # Waits follow each other, and the one before may reach into the gap.
            first = max(0, bisect_left(starts, gap.began) - 1)
            near = self.waits[first : bisect_right(starts, gap.ended)]
            still = sum(max(0.0, min(gap.ended, one.ended) - max(gap.began, one.began)) for one in near)
            found.append(gap.ms - 1000 * still)
        return found


@contextmanager
def _in_thread(act: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=act, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Sender:
    """Sends requests over one connection, which it opens again when the server has closed it.

    Attributes:
        admin_key: The key that changes settings.
        statuses: How often each status came.
        slowest_ms: The slowest answer.
        last_answer: The last body.
        wrong: What should not have happened.
    """

    def __init__(self, url: str, admin_key: str = "", *, patience_s: float = PATIENCE_S) -> None:
        self.admin_key, self._connection = admin_key, connect(url, patience_s)
        self.statuses: Counter[str] = Counter()
        self.slowest_ms, self.last_answer = 0.0, b""
        self.wrong: list[str] = []

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Send one request and return its status; once more where the server had closed the connection.

        A request that is not answered in time has the status 504.
        """
        for attempt in (1, 2):
            started = perf_counter()
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                self.last_answer = answer.read()
                break
            except TimeoutError:
                self._connection.close()
                self.statuses["no answer"] += 1
                self.last_answer = b"no answer in time"
                return 504
            except (http.client.HTTPException, OSError):
                # An answer to a large body may come before all of it was sent.
                self._connection.close()
                if attempt == 2:
                    self.statuses["closed"] += 1
                    return 499
        self.slowest_ms = max(self.slowest_ms, 1000 * (perf_counter() - started))
        self.statuses[str(answer.status)] += 1
        return answer.status


def connect(url: str, patience_s: float = PATIENCE_S) -> http.client.HTTPConnection:
    """Open a connection to a server."""
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=patience_s)


def spread(gaps: Sequence[Gap], watch: Watch) -> dict[str, float]:
    """Return the middle and the end of the times between tokens, and what of them is the server's own.

    Args:
        gaps: The times.
        watch: What was seen of this process meanwhile.
    """
    values, own = [gap.ms for gap in gaps], watch.own_ms(gaps)
    return spread_ms(values) | {
        "above_100_ms": sum(value > PAUSE_MS for value in values),
        "own_above_100_ms": sum(value > PAUSE_MS for value in own),
        "own_most": round(max(own, default=0.0), 2),
        "machine_most": round(watch.longest_ms, 2),
    }
