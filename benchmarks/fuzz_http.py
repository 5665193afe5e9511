"""Send generated requests to the routes of a real ``vllm serve``, while a client reads a stream of tokens.

Run ``make fuzz-http`` (or ``python benchmarks/fuzz_http.py`` in an environment with vLLM). Hypothesis draws
the requests (``fuzz_requests.py``) to the routes of the server and to the three paths of ``metrics_port``,
with right and wrong keys and media types; what must be refused stays as small as it can find. Before each
route there is a control: the same stream while requests go to ``/health``. One JSON line a route goes to
``--out`` as soon as it is through. Exit code 1 unless

- every request is answered with a status that is not the server's fault (below 500), and within `PATIENCE_S`;
- no token of the stream comes later than 100 ms after the one before it. Where one of the control does, too,
  the machine is too busy: then only a pause of `FAR` times the control's longest is wrong, and the record
  says that no more can be told about pauses;
- the stream goes on, and after each route, with the settings of the start, the text is the same as before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from bundled_table import random_bundled_table
from fuzz_requests import BODIES, KEYS, KINDS, QUERIES, ROUTES, Route
from sere.bundled import model_path
from sere.engines.server import Server, free_port, serve
from sere.files import append_json_line
from sere.integrations.vllm.client.admin_key import HEADER
from sere.provenance import provenance

FORMAT = "sere-fuzz-http-3"
PAUSE_MS = 100.0
FAR = 10
PATIENCE_S = 30.0
CONTROL_S = 60.0
START_S = 580.0
PROMPT = "add 123 456 = "
NONE, SOME, UNKNOWN = "none", "some", "cannot tell"
FIRST: dict[str, Any] = {"tier": None, "select_top_k": 1, "threshold": 0.0, "active_experts": 24,
                         "layers": {}, "keep": {}, "enabled": True, "count_only": False}  # fmt: skip


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
        stop = threading.Event()
        thread = threading.Thread(target=self._read, args=(stop, gaps_ms))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

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


def main() -> int:
    """Fuzz every route and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000, help="for each route (default: %(default)s)")
    parser.add_argument("--control", type=float, default=CONTROL_S, help="seconds of each control")
    parser.add_argument("--compiled", action="store_true", help="an engine that compiles, not an eager one")
    parser.add_argument("--only", default="", help="only routes whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the records to this file of JSON lines")
    args = parser.parse_args()
    port, fine = free_port(), True
    config = {"examples": args.examples, "control_s": args.control, "compiled": args.compiled,
              "seed": args.seed}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sere-fuzz-") as folder:
        table = Path(folder) / "table.sere"
        random_bundled_table().save(table)
        flags = ["--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", "32"]
        flags += [] if args.compiled else ["--enforce-eager"]
        given_to_sere = {"table": str(table), "active_experts": 24, "live_page": True, "metrics_port": port}
        given_to_sere["count_experts"] = True
        with serve(model_path(), given_to_sere, Path(folder) / "log", *flags, start_s=START_S) as server:
            before = ask(server)
            for number, route in enumerate(ROUTES):
                if args.only not in route.name:
                    continue
                record = fuzz(server, port, route, args.examples, args.seed + number, args.control, before)
                print(json.dumps(record, indent=2), flush=True)
                fine &= not record["wrong"]
                if args.out is not None:
                    whole = {"format": FORMAT} | record | {"config": config, "provenance": provenance()}
                    append_json_line(args.out, whole)
    return 0 if fine else 1


def fuzz(
    server: Server, port: int, route: Route, examples: int, first_seed: int, control_s: float, text: str
) -> dict[str, Any]:
    """Send the control's requests, then the generated ones to a route; return what was seen.

    Args:
        server: The server.
        port: Its ``metrics_port``.
        route: The route.
        examples: How many requests.
        first_seed: Of the generated ones.
        control_s: Seconds of the control.
        text: What `ask` returned at the start.
    """
    stream, control = Stream(server), Sender(server.url)
    sender = Sender(f"http://127.0.0.1:{port}" if route.on_port else server.url, server.admin_key)
    gaps: dict[str, list[float]] = {"control": [], "fuzzed": []}
    tracebacks = _tracebacks(server)
    with stream.reading(gaps["control"]):
        started = perf_counter()
        while perf_counter() - started < control_s:
            control.send("GET", "/health", b"", {})
    with stream.reading(gaps["fuzzed"]):
        started = perf_counter()
        _fuzz_route(sender, route, examples, first_seed)
        seconds = perf_counter() - started
    server.check()
    # Switched off or only counting, the other routes would have less to do.
    status, answer = server.post("/v1/sere/settings", FIRST)
    if status != 200 or ask(server) != text:
        sender.wrong.append(f"with the first settings again, another text or answer: {status} {answer}")
    # What only the log shows.
    if (found := _tracebacks(server) - tracebacks) > 0:
        sender.wrong.append(f"the server's log has {found} tracebacks more")
    quiet, loud = spread(gaps["control"]), spread(gaps["fuzzed"])
    verdict, wrong = pauses(loud, quiet)
    return {
        "route": route.name,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(sender.statuses.items())),
        "slowest_answer_ms": round(sender.slowest_ms, 1),
        "gaps_ms": {"control": quiet, "fuzzed": loud},
        "pauses": verdict,
        "wrong": (sender.wrong + wrong + stream.wrong)[:20],
    }


def _tracebacks(server: Server) -> int:
    return server.log.read_text(errors="replace").count("Traceback")


def pauses(loud: Mapping[str, float], quiet: Mapping[str, float]) -> tuple[str, list[str]]:
    """Return whether there were pauses between tokens, and what is wrong with them.

    Args:
        loud: The times between tokens while a route was fuzzed, as `spread` returns them.
        quiet: Those of the control.
    """
    if loud["most"] <= PAUSE_MS:
        return NONE, []
    busy = quiet["most"] > PAUSE_MS
    if busy and loud["most"] <= FAR * quiet["most"]:
        return UNKNOWN, []
    text = (
        f"{loud['above_100_ms']} tokens came over {PAUSE_MS:g} ms after the one before, one "
        f"{loud['most']} ms; of the control, the slowest took {quiet['most']} ms"
    )
    return SOME, [text]


def _fuzz_route(sender: Sender, route: Route, examples: int, first_seed: int) -> None:
    @seed(first_seed)
    @settings(max_examples=examples, database=None, deadline=None, phases=(Phase.generate, Phase.shrink),
              suppress_health_check=[*HealthCheck], report_multiple_bugs=False)  # fmt: skip
    @given(BODIES, KINDS, KEYS, QUERIES)
    def send(body: bytes, kind: str | None, key: str | None, query: str) -> None:
        headers = {} if kind is None else {"Content-Type": kind}
        if key is not None:
            headers[HEADER] = sender.admin_key if key == "right" else key
        status = sender.send(route.method, f"{route.path}{query}", body, headers)
        assert status < 500, f"{status}: {sender.last_answer[:300]!r}"

    try:
        send()
    except (AssertionError, Flaky) as error:
        sender.wrong.append(f"{route.name}: {error}; {' '.join(getattr(error, '__notes__', []))}"[:2000])


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


def ask(server: Server) -> str:
    """Return the text of one answer, alone in its batch."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    status, answer = server.post("/v1/completions", body)
    if status != 200:
        raise SystemExit(f"fuzz-http: expected a completion, got {status}: {answer}")
    return str(answer["choices"][0]["text"])


def spread(values: list[float]) -> dict[str, float]:
    """Return the middle and the end of a distribution."""
    ordered = sorted(values) or [0.0]
    slow = sum(value > PAUSE_MS for value in values)
    at = {"median": 0.5, "p99": 0.99, "p99_9": 0.999, "most": 1.0}
    return {"count": len(values), "above_100_ms": slow} | {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        for name, share in at.items()
    }


if __name__ == "__main__":
    sys.exit(main())
