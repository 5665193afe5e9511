"""Send generated requests to the routes of a real ``vllm serve``, while a client reads a stream of tokens.

Run ``make fuzz-http`` (or ``python benchmarks/fuzz_http.py`` in an environment with vLLM). Hypothesis draws
the requests (``fuzz_requests.py``) to the routes of the server and to the three paths of ``metrics_port``,
with right and wrong keys and media types; what must be refused stays as small as it can find. Before each
route there is a control: the same stream while requests go to ``/health``. One JSON line a route goes to
``--out`` as soon as it is through. Exit code 1 unless

- every request is answered with a status that is not the server's fault (below 500), and within five minutes;
- no request stops the engine for more than 100 ms of its own time, as the engine's processes say themselves
  (``engine_pauses.py``): not one of its calls, and not one pause between two steps;
- the stream goes on, and after each route, with the settings of the start, the text is the same as before.

The record also says how many tokens of the stream came later than 100 ms after the one before. That is not
judged: on a busy machine client, server and engine wait for cores and for each other. So that more can be
told from it, a thread of the client that only naps sees when the client itself stands still.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from bundled_table import random_bundled_table
from engine_pauses import Notes, figures, installed, judged
from fuzz_clients import PROMPT, Gap, Sender, Stream, Watch, spread
from fuzz_requests import BODIES, KEYS, KINDS, QUERIES, ROUTES, Route
from sere.bundled import model_path
from sere.engines.server import Server, free_port, serve
from sere.files import append_json_line
from sere.integrations.vllm.client.admin_key import HEADER
from sere.provenance import provenance

FORMAT = "sere-fuzz-http-5"
CONTROL_S = 60.0
START_S = 580.0
FIRST: dict[str, Any] = {"tier": None, "select_top_k": 1, "threshold": 0.0, "active_experts": 24,
                         "layers": {}, "keep": {}, "enabled": True, "count_only": False}  # fmt: skip


def main() -> int:
    """Fuzz every route and print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", "--examples", type=int, default=10_000, help="for each route (default: %(default)s)"
    )
    parser.add_argument("--control", type=float, default=CONTROL_S, help="seconds of each control")
    parser.add_argument("--compiled", action="store_true", help="an engine that compiles, not an eager one")
    parser.add_argument("--only", default="", help="only routes whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the records to this file of JSON lines")
    args = parser.parse_args()
    port, fine = free_port(), True
    config = {"requests": args.requests, "control_s": args.control, "compiled": args.compiled,
              "seed": args.seed}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sere-fuzz-") as folder:
        table = Path(folder) / "table.sere"
        random_bundled_table().save(table)
        flags = ["--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", "32"]
        flags += [] if args.compiled else ["--enforce-eager"]
        given_to_sere = {"table": str(table), "active_experts": 24, "live_page": True, "metrics_port": port}
        given_to_sere["count_experts"] = True
        with (
            installed(Path(folder) / "notes") as notes,
            serve(model_path(), given_to_sere, Path(folder) / "log", *flags, start_s=START_S) as server,
        ):
            before = ask(server)
            for number, route in enumerate(ROUTES):
                if args.only not in route.name:
                    continue
                asked = args.requests, args.seed + number
                record = fuzz(server, port, route, asked, args.control, before, notes)
                print(json.dumps(record, indent=2), flush=True)
                fine &= not record["wrong"]
                if args.out is not None:
                    whole = {"format": FORMAT} | record | {"config": config, "provenance": provenance()}
                    append_json_line(args.out, whole)
    return 0 if fine else 1


def fuzz(
    server: Server,
    port: int,
    route: Route,
    asked: tuple[int, int],
    control_s: float,
    text: str,
    notes: Notes,
) -> dict[str, Any]:
    """Send the control's requests, then the generated ones to a route; return what was seen.

    Args:
        server: The server.
        port: Its ``metrics_port``.
        route: The route.
        asked: How many requests, and the first seed of the generated ones.
        control_s: Seconds of the control.
        text: What `ask` returned at the start.
        notes: What the engine notes.
    """
    stream, control = Stream(server), Sender(server.url)
    watches = {"control": Watch(), "fuzzed": Watch()}
    sender = Sender(f"http://127.0.0.1:{port}" if route.on_port else server.url, server.admin_key)
    gaps: dict[str, list[Gap]] = {"control": [], "fuzzed": []}
    known = len(_tracebacks(server))
    notes.take()
    with stream.reading(gaps["control"]), watches["control"].watching():
        started = perf_counter()
        while perf_counter() - started < control_s:
            control.send("GET", "/health", b"", {})
    engine, stolen_s = {"control": figures(notes.take())}, _stolen_s()
    with stream.reading(gaps["fuzzed"]), watches["fuzzed"].watching():
        started = perf_counter()
        _fuzz_route(sender, route, *asked)
        seconds = perf_counter() - started
    engine["fuzzed"], stolen_s = figures(notes.take()), _stolen_s() - stolen_s
    server.check()
    # Switched off or only counting, the other routes would have less to do.
    status, answer = server.post("/v1/sere/settings", FIRST)
    if status != 200 or ask(server) != text:
        sender.wrong.append(f"with the first settings again, another text or answer: {status} {answer}")
    # What only the log shows.
    sender.wrong += [f"the server's log: {text}" for text in _tracebacks(server)[known:]]
    return {
        "route": route.name,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(sender.statuses.items())),
        "slowest_answer_ms": round(sender.slowest_ms, 1),
        "engine": engine,
        "gaps_ms": {name: spread(found, watches[name]) for name, found in gaps.items()},
        "stolen_s": round(stolen_s, 2),
        "wrong": (sender.wrong + judged(engine["fuzzed"]) + stream.wrong)[:20],
    }


def _tracebacks(server: Server) -> list[str]:
    """Return the beginning and the end of each traceback that the server's log has."""
    found = re.findall(
        r"^.*Traceback.*\n(?:.*\n){0,80}", server.log.read_text(errors="replace"), re.MULTILINE
    )
    return [f"{text[:500]} ... {text[-1500:]}" for text in found]


def _stolen_s() -> float:
    """Return the seconds for which the host took away cores of this machine so far, all cores together."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


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


def ask(server: Server) -> str:
    """Return the text of one answer, alone in its batch."""
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    status, answer = server.post("/v1/completions", body)
    if status != 200:
        raise SystemExit(f"fuzz-http: expected a completion, got {status}: {answer}")
    return str(answer["choices"][0]["text"])


if __name__ == "__main__":
    sys.exit(main())
