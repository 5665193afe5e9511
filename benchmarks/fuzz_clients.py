"""The clients of ``fuzz_http.py``: one reads tokens, one sends requests, one watches the machine."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from sere.engines.server import Server

PAUSE_MS = 100.0
FAR = 10
PATIENCE_S = 300.0
WATCH_S = 0.02
PROMPT = "add 123 456 = "
NONE, SOME, UNKNOWN = "none", "some", "cannot tell"


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
    def reading(self, gaps_ms: list[float]) -> Iterator[None]:
        """Read answers until the block ends; add the milliseconds between two pieces of one answer."""
        with _in_thread(lambda stop: self._read(stop, gaps_ms)):
            yield

    def _read(self, stop: threading.Event, gaps_ms: list[float]) -> None:
        while not stop.is_set():
            try:
                self._read_answer(gaps_ms)
            except (http.client.HTTPException, OSError) as error:
                self.wrong.append(f"the stream broke off: {type(error).__name__}: {error}")

    def _read_answer(self, gaps_ms: list[float]) -> None:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True,
                "stream": True}  # fmt: skip
        connection = connect(self.server.url)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer, last, pieces = connection.getresponse(), None, 0
        while line := answer.readline():
            if line.startswith(b"data: {"):
                now = perf_counter()
                if last is not None:
                    gaps_ms.append(1000 * (now - last))
                last, pieces = now, pieces + 1
        connection.close()
        if answer.status != 200 or not pieces:
            self.wrong.append(f"the stream ended with status {answer.status} after {pieces} pieces")


class Watch:
    """Sees for how long the machine lets a process wait that has next to nothing to do.

    Attributes:
        longest_ms: The longest time by which a nap of `WATCH_S` was too long.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        with _in_thread(self._watch):
            yield

    def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = perf_counter()
            time.sleep(WATCH_S)
            self.longest_ms = max(self.longest_ms, 1000 * (perf_counter() - started - WATCH_S))


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


def pauses(loud: Mapping[str, float], machine_ms: float) -> tuple[str, list[str]]:
    """Return whether there were pauses between tokens, and what is wrong with them.

    Args:
        loud: The times between tokens while a route was fuzzed, as `spread` returns them.
        machine_ms: The longest pause of the machine itself, as the control and the watch show it.
    """
    if loud["most"] <= PAUSE_MS:
        return NONE, []
    if machine_ms > PAUSE_MS and loud["most"] <= FAR * machine_ms:
        return UNKNOWN, []
    text = (
        f"{loud['above_100_ms']} tokens came over {PAUSE_MS:g} ms after the one before, one "
        f"{loud['most']} ms; the machine itself paused for {machine_ms:g} ms"
    )
    return SOME, [text]


def spread(values: list[float]) -> dict[str, float]:
    """Return the middle and the end of a distribution."""
    ordered = sorted(values) or [0.0]
    slow = sum(value > PAUSE_MS for value in values)
    at = {"median": 0.5, "p99": 0.99, "p99_9": 0.999, "most": 1.0}
    return {"count": len(values), "above_100_ms": slow} | {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        for name, share in at.items()
    }
