"""Viewers of a live page, as one small process: `viewers.py` starts it, and reads what it prints.

Run as ``python viewer_process.py URL COUNT``. Each viewer holds one connection and asks, a second after each
answer, for what is new, as the page does. The process imports nothing outside the standard library, so that
what is timed beside it keeps the processor. It prints one line of JSON once each viewer has had an answer or
has failed, and one more for each line that it reads. It ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

EVERY_S = 1.0
_TIMEOUT_S = 10.0


class Viewer(threading.Thread):
    """One viewer.

    Attributes:
        answers: How many it has had.
        failed: Why it looks no more, or None.
        begun: Set at its first answer, or when it has failed.
    """

    def __init__(self, url: str, wait_s: float = 0.0) -> None:
        """Prepare a viewer.

        Args:
            url: What it asks, ``http`` alone.
            wait_s: Seconds before it begins, so that not all ask at the same moment.
        """
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self._connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        self._path = parts.path
        self._wait_s = wait_s
        self.answers = 0
        self.failed: str | None = None
        self.begun = threading.Event()

    def run(self) -> None:
        """Look until the process ends, or until something fails."""
        time.sleep(self._wait_s)
        since = 0.0
        try:
            while True:
                points = self.ask(since)
                since = points[-1]["at"] if points else since
                self.answers += 1
                self.begun.set()
                time.sleep(EVERY_S)
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            self.failed = f"{type(error).__name__}: {error}"
        finally:
            self.close()
            self.begun.set()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, since: float) -> list[dict[str, Any]]:
        """Return the points after a moment; a connection that the server has closed is opened once more."""
        target = f"{self._path}?since={since:.3f}"
        try:
            self._connection.request("GET", target)
            answer = self._connection.getresponse()
        except ConnectionError:
            self._connection.close()
            self._connection.request("GET", target)
            answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"expected an answer with status 200, got {answer.status}: {body[:200]!r}")
        points: list[dict[str, Any]] = json.loads(body)["points"]
        return points


def state(viewers: list[Viewer]) -> dict[str, Any]:
    """Return the answers of each viewer so far, why some failed, and the process's own processor time."""
    return {
        "answers": [one.answers for one in viewers],
        "failed": [one.failed for one in viewers if one.failed is not None],
        "processor_s": time.process_time(),
    }


def main() -> int:
    """Look, and say what was seen whenever asked."""
    url, count = sys.argv[1], int(sys.argv[2])
    viewers = [Viewer(url, EVERY_S * number / count) for number in range(count)]
    for one in viewers:
        one.start()
    for one in viewers:
        one.begun.wait()
    print(json.dumps(state(viewers)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(state(viewers)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
