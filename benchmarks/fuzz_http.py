"""Send generated requests to the routes of a real ``vllm serve``, while a client reads a stream of tokens.

Run ``make fuzz-http`` (or ``python benchmarks/fuzz_http.py`` in an environment with vLLM). Hypothesis draws
the bodies: JSON of any form, settings with right and wrong values, bytes, large and deep ones, with right and
wrong keys and media types; what the server must refuse stays as small as it can find. Exit code 1 unless

- every request is answered with a status that is not the server's fault (below 500), and within `PATIENCE_S`;
- no token of the stream comes later than 100 ms after the one before it, or than twice the worst of the
  control: the same stream while requests go to ``/health``, because a busy machine delays tokens by itself;
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sere.bundled import model_path
from sere.engines.server import Server, serve
from sere.files import append_json_line
from sere.integrations.vllm.changes import CHANGEABLE
from sere.integrations.vllm.client.admin_key import HEADER
from sere.integrations.vllm.client.body import MOST_BYTES
from sere.provenance import provenance

FORMAT = "sere-fuzz-http-1"
ROUTES = {"settings": "POST", "reset": "POST", "stats": "GET", "metrics": "GET"}
LAYERS, EXPERTS = 6, 96
PAUSE_MS = 100.0
PATIENCE_S = 30.0
CONTROL_S = 60.0
START_S = 580.0
PROMPT = "add 123 456 = "
FIRST: dict[str, Any] = {"tier": None, "select_top_k": 1, "threshold": 0.0, "active_experts": 24,
                         "layers": {}, "keep": {}, "enabled": True, "count_only": False}  # fmt: skip

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-2, 130) | st.floats() | st.text(max_size=20)
    | st.sampled_from(["auto", "off", "safe", "", "\ud800", 2**31, 2**63, 2**64, -1, 10**300, 1e308])
)  # fmt: skip
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)
_INDEX = st.integers(-1, LAYERS).map(str) | st.sampled_from(["0", "x", "", "01", "1e3", "9" * 50])
_POINTS = st.lists(st.tuples(st.integers(0, 300), st.integers(-1, EXPERTS + 3)).map(list), max_size=300)
_M = st.integers(0, EXPERTS) | st.floats(0, 1) | st.just("auto") | _POINTS | _JSON
_OF_A_LAYER = st.dictionaries(
    st.sampled_from(["active_experts", "select_top_k", "threshold", "cap"]),
    _M | st.integers(1, 9),
    max_size=4,
)
_IDS = st.lists(st.integers(0, EXPERTS), max_size=EXPERTS + 5) | _JSON
_VALUES = {
    "select_top_k": st.integers(0, 9) | _JSON,
    "threshold": st.floats(0, 2) | st.integers(0, 3) | _JSON,
    "active_experts": _M | st.dictionaries(_INDEX, _M, max_size=8),
    "layers": st.dictionaries(_INDEX, _OF_A_LAYER | _JSON, max_size=8) | _JSON,
    "tier": st.sampled_from(["safe", "balanced", "fast", None]) | _JSON,
    "keep": st.dictionaries(_INDEX, _IDS, max_size=8) | _JSON,
    "enabled": st.booleans() | _JSON,
    "count_only": st.booleans() | _JSON,
}
_CHANGES = st.fixed_dictionaries({}, optional=_VALUES)
_LARGE = st.sampled_from(
    [
        b" " * (MOST_BYTES + 1),
        b'{"keep": {"0": [' + b"9," * 80_000 + b"9]}}",
        b'{"keep": {"0": [' + b"[" * 900 + b"]" * 900 + b"]}}",
        b'{"active_experts": [' + b"[1,1]," * 40_000 + b"[1,1]]}",
        b'{"layers": {' + b",".join(b'"%d":{}' % layer for layer in range(20_000)) + b"}}",
        b"[" * 200_000,
        b'{"threshold": ' + b"9" * 5000 + b"}",
        b'{"threshold": ' + b"9" * 300 + b"}",
    ]
)
BODIES = (
    _CHANGES.map(lambda value: json.dumps(value).encode())
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(CHANGEABLE), _JSON, max_size=4).map(
        lambda value: json.dumps(value).encode()
    )
    | st.binary(max_size=200)
    | _LARGE
)
KINDS = st.sampled_from(["application/json"] * 8 + ["application/json; charset=x", "text/plain", "", None])
KEYS = st.sampled_from(["right"] * 12 + ["wrong", None])
QUERIES = st.sampled_from([""] * 6 + ["?", "?a=1", "?%ff=%00", "?" + "a" * 3000])


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
            connection = connect(self.server)
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sere-fuzz-") as folder:
        table = Path(folder) / "table.sere"
        random_table_of_the_bundled_model(table)
        flags = (
            "--served-model-name",
            "tiny",
            "--max-model-len",
            "256",
            "--max-num-seqs",
            "32",
            "--enforce-eager",
        )
        settings_of_sere = {"table": str(table), "active_experts": 24}
        with serve(model_path(), settings_of_sere, Path(folder) / "log", *flags, start_s=START_S) as server:
            record = fuzz(server, args.examples, args.seed)
            # What only the log shows.
            record["tracebacks"] = server.log.read_text(errors="replace").count("Traceback")
    record |= {"format": FORMAT, "examples": args.examples, "seed": args.seed, "provenance": provenance()}
    print(json.dumps({name: value for name, value in record.items() if name != "provenance"}, indent=2))
    if args.out is not None:
        append_json_line(args.out, record)
    return 1 if record["wrong"] or record["tracebacks"] else 0


def random_table_of_the_bundled_model(path: Path) -> None:
    """Write a table with random similarities."""
    from transformers import AutoModelForCausalLM

    from sere.bench.target import random_table

    random_table(AutoModelForCausalLM.from_pretrained(model_path())).save(path)


def fuzz(server: Server, examples: int, first_seed: int) -> dict[str, Any]:
    """Send to each route the control's requests, then the generated ones; return what was seen."""
    before, stream = ask(server), Stream(server)
    gaps: dict[str, list[float]] = {"control": [], "fuzzed": []}
    statuses: dict[str, dict[str, int]] = {}
    wrong: list[str] = []
    slowest = 0.0
    for number, (route, method) in enumerate(ROUTES.items()):
        control, sender = Sender(server), Sender(server)
        with stream.reading(gaps["control"]):
            started = perf_counter()
            while perf_counter() - started < CONTROL_S:
                control.send("GET", "/health", b"", {})
        with stream.reading(gaps["fuzzed"]):
            _fuzz_route(sender, method, route, examples, first_seed + number)
        statuses[route] = dict(sorted(sender.statuses.items()))
        print(f"{route}: {statuses[route]}", file=sys.stderr, flush=True)
        wrong, slowest = wrong + sender.wrong, max(slowest, sender.slowest_ms)
        # Switched off or only counting, the other routes would have less to do.
        server.post("/v1/sere/settings", FIRST)
    quiet, loud = spread(gaps["control"]), spread(gaps["fuzzed"])
    server.check()
    status, answer = server.post("/v1/sere/settings", FIRST)
    if status != 200 or ask(server) != before:
        wrong.append(f"with the first settings again, another text or answer: {status} {answer}")
    if loud["most"] > max(PAUSE_MS, 2 * quiet["most"]):
        wrong.append(
            f"a token came {loud['most']} ms after the one before; in the control {quiet['most']} ms"
        )
    return {
        "statuses": statuses,
        "slowest_answer_ms": round(slowest, 1),
        "gaps_ms": {"control": quiet, "fuzzed": loud},
        "wrong": (wrong + stream.wrong)[:20],
    }


def _fuzz_route(sender: Sender, method: str, route: str, examples: int, first_seed: int) -> None:
    @seed(first_seed)
    @settings(max_examples=examples, database=None, deadline=None, phases=(Phase.generate, Phase.shrink),
              suppress_health_check=[*HealthCheck], report_multiple_bugs=False)  # fmt: skip
    @given(BODIES, KINDS, KEYS, QUERIES)
    def send(body: bytes, kind: str | None, key: str | None, query: str) -> None:
        headers = {} if kind is None else {"Content-Type": kind}
        if key is not None:
            headers[HEADER] = sender.server.admin_key if key == "right" else key
        status = sender.send(method, f"/v1/sere/{route}{query}", body, headers)
        assert status < 500, f"{status}: {sender.last_answer[:300]!r}"

    try:
        send()
    except AssertionError as error:
        sender.wrong.append(f"{route}: {error}; {' '.join(getattr(error, '__notes__', []))}"[:2000])


class Sender:
    """Sends requests over one connection, which it opens again when the server has closed it.

    Attributes:
        statuses: How often each status came.
        slowest_ms: The slowest answer.
        last_answer: The last body.
        wrong: What should not have happened.
    """

    def __init__(self, server: Server) -> None:
        self.server, self._connection = server, connect(server)
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


def connect(server: Server) -> http.client.HTTPConnection:
    """Open a connection to a server."""
    return http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)


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
