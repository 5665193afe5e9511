"""Send generated requests to the routes of a real ``vllm serve``, while a client reads a stream of tokens.

Run ``make fuzz-http`` (or ``python benchmarks/fuzz_http.py`` in an environment with vLLM). Hypothesis draws
the requests (``fuzz_requests.py``) to the six routes of the server, with right and wrong keys, media types,
and to the three paths of ``metrics_port``; what must be refused stays as small as it can find. Before each
route there is a control: the same stream while requests go to ``/health``. Exit code 1 unless

- every request is answered with a status that is not the server's fault (below 500), and within `PATIENCE_S`;
- no token of the stream comes later than 100 ms after the one before it. The record has the control's worst,
  too: where that is above 100 ms, the machine is too busy, and the run shows nothing about pauses;
- the stream's text is the same at the end, with the settings of the start, as alone before.
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

from bundled_table import random_bundled_table
from fuzz_requests import BODIES, KEYS, KINDS, QUERIES, ROUTES, Route
from sere.bundled import model_path
from sere.engines.server import Server, free_port, serve
from sere.files import append_json_line
from sere.integrations.vllm.client.admin_key import HEADER
from sere.provenance import provenance

FORMAT = "sere-fuzz-http-2"
PAUSE_MS = 100.0
PATIENCE_S = 30.0
CONTROL_S = 60.0
START_S = 580.0
PROMPT = "add 123 456 = "
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
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": True,
                "stream": True}  # fmt: skip
        while not stop.is_set():
            connection = connect(self.server.url)
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sere-fuzz-") as folder:
        table = Path(folder) / "table.sere"
        random_bundled_table().save(table)
        flags = ["--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", "32"]
        flags += [] if args.compiled else ["--enforce-eager"]
        given_to_sere = {"table": str(table), "active_experts": 24, "live_page": True, "metrics_port": port}
        given_to_sere["count_experts"] = True
        with serve(model_path(), given_to_sere, Path(folder) / "log", *flags, start_s=START_S) as server:
            record = fuzz(server, port, args.examples, args.seed, args.control)
            # What only the log shows.
            record["tracebacks"] = server.log.read_text(errors="replace").count("Traceback")
    record |= {
        "format": FORMAT,
        "config": {"examples": args.examples, "control_s": args.control, "compiled": args.compiled,
                   "seed": args.seed},
        "provenance": provenance(),
    }  # fmt: skip
    print(json.dumps({name: value for name, value in record.items() if name != "provenance"}, indent=2))
    if args.out is not None:
        append_json_line(args.out, record)
    return 1 if record["wrong"] or record["tracebacks"] else 0


def fuzz(server: Server, port: int, examples: int, first_seed: int, control_s: float) -> dict[str, Any]:
    """Send to each route the control's requests, then the generated ones; return what was seen."""
    before, stream = ask(server), Stream(server)
    gaps: dict[str, list[float]] = {"control": [], "fuzzed": []}
    statuses: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    slowest = 0.0
    for number, route in enumerate(ROUTES):
        control = Sender(server.url)
        sender = Sender(f"http://127.0.0.1:{port}" if route.on_port else server.url, server.admin_key)
        with stream.reading(gaps["control"]):
            started = perf_counter()
            while perf_counter() - started < control_s:
                control.send("GET", "/health", b"", {})
        with stream.reading(gaps["fuzzed"]):
            _fuzz_route(sender, route, examples, first_seed + number)
        statuses[route.name] = dict(sorted(sender.statuses.items()))
        print(f"{route.name}: {statuses[route.name]}", file=sys.stderr, flush=True)
        wrong, slowest = wrong + sender.wrong, max(slowest, sender.slowest_ms)
        # Switched off or only counting, the other routes would have less to do.
        server.post("/v1/sere/settings", FIRST)
    quiet, loud = spread(gaps["control"]), spread(gaps["fuzzed"])
    server.check()
    status, answer = server.post("/v1/sere/settings", FIRST)
    if status != 200 or ask(server) != before:
        wrong.append(f"with the first settings again, another text or answer: {status} {answer}")
    wrong += pauses(loud, quiet)
    return {
        "statuses": statuses,
        "slowest_answer_ms": round(slowest, 1),
        "gaps_ms": {"control": quiet, "fuzzed": loud},
        "wrong": (wrong + stream.wrong)[:20],
    }


def pauses(loud: Mapping[str, float], quiet: Mapping[str, float]) -> list[str]:
    """Return what is wrong with the times between tokens, as `spread` returns them.

    Args:
        loud: While a route was fuzzed.
        quiet: Of the control.
    """
    if loud["most"] <= PAUSE_MS:
        return []
    text = (
        f"{loud['above_100_ms']} tokens came over {PAUSE_MS:g} ms after the one before, one {loud['most']} ms"
    )
    if quiet["most"] > PAUSE_MS:
        text += f"; but one of the control {quiet['most']} ms, too: use a machine that does nothing else"
    return [text]


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
    except AssertionError as error:
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

    def __init__(self, url: str, admin_key: str = "") -> None:
        self.admin_key, self._connection = admin_key, connect(url)
        self.statuses: Counter[str] = Counter()
        self.slowest_ms, self.last_answer = 0.0, b""
        self.wrong: list[str] = []

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Send one request and return its status; once more where the server had closed the connection."""
        for attempt in (1, 2):
            started = perf_counter()
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                self.last_answer = answer.read()
                break
            except (http.client.HTTPException, OSError):
                # An answer to a large body may come before all of it was sent.
                self._connection.close()
                if attempt == 2:
                    self.statuses["closed"] += 1
                    return 499
        self.slowest_ms = max(self.slowest_ms, 1000 * (perf_counter() - started))
        self.statuses[str(answer.status)] += 1
        return answer.status


def connect(url: str) -> http.client.HTTPConnection:
    """Open a connection to a server."""
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)


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
