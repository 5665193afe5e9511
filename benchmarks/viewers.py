"""What viewers of the live page cost: tokens per second of a real ``vllm serve`` with 0, 1 and 20 of them.

Run ``make viewers`` (or ``python benchmarks/viewers.py`` in an environment with vLLM). A round measures each
number of viewers once, in an order that rotates from round to round. A viewer asks for what the page shows
once a second, as the page does; all of them are one small process of their own. A measurement begins once
each viewer has had an answer, and stops the run if one fails or has less than half an answer a second.
Printed is the documents' table: the medians, the median of the rounds' ratios to no viewer with its interval
(at least 95 %, by order statistics; none below six rounds), how many answers viewers had under load, and the
processor time of their own process.

Throughput on a machine that others share scatters by far more than viewers cost. So each time the load is
followed by some seconds without requests, in which the processor time of the server's processes is read: what
it is more than without viewers is what they cost, whether or not it can be seen in throughput. And what
viewers make a loaded server do is timed by itself, in two parts. The engine is asked for its statistics at
most once a second, whatever their number: some questions in a row, each from the client to the workers and
back, show the most that this can take of its time. The server process answers each viewer once a second: many
answers in a row show its processor time for each (`viewer_answers.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "build"))
from bundled_table import random_bundled_table
from sere.bench.timing import turns
from sere.bench.vllm.load_generator import Load, run_load
from sere.bundled import model_path
from sere.engines.server import Server, serve
from sere.errors import OutputError, ServerError
from sere.files import append_json_line, check_writable
from sere.integrations.vllm.live.fetch import live_url
from sere.provenance import provenance
from viewer_answers import answers_ms
from viewer_table import render

FORMAT = "sere-viewers-1"
START_S = 900.0
MODEL = "tiny"
# Tokens of a prompt, and of the longest text.
PROMPT, LONGEST = 8, 256
# Between two measurements: what the last viewers asked for is done.
SETTLE_S = 1.5
# A viewer asks a second after each answer, and a loaded server takes its time to answer.
LEAST_ANSWERS_PER_S = 0.5
QUESTIONS = 200
VIEWERS = Path(__file__).with_name("viewer_process.py")

Rounds = dict[str, dict[int, list[float]]]
"""By name in the record and number of viewers, a number of each round."""


def main() -> int:
    """Measure one server and print the table."""
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="sere-viewers-") as folder:
        table = Path(folder) / "table.sere"
        random_bundled_table().save(table)
        flags = ["--served-model-name", MODEL, "--max-model-len", str(LONGEST), "--max-num-seqs", "32"]
        flags += ["--enforce-eager"] if args.eager else []
        given = {"table": str(table), "active_experts": 24, "live_page": True}
        with serve(model_path(), given, Path(folder) / "log", *flags, start_s=START_S) as server:
            _measure(server, args, 0)  # the first requests compile
            found: Rounds = {}
            for number in range(args.rounds):
                for count in turns(args.viewers, number):
                    for name, value in one_round(server, args, number, count).items():
                        found.setdefault(name, {}).setdefault(count, []).append(value)
                print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            measured = found | answers_ms(server) | {"question_ms": questions_ms(server, QUESTIONS)}
    print(render(measured))
    if args.out is not None:
        config = {name: value for name, value in vars(args).items() if name != "out"}
        append_json_line(
            args.out, {"format": FORMAT, "config": config} | measured | {"provenance": provenance()}
        )
    return 0


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, all of them checked, because a server takes a minute to start.

    Args:
        given: The command line; that of the process if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 1, 20], help="(default: 0 1 20)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="of a measurement (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=16, help="requests (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=200, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--idle", type=float, default=10.0, metavar="S",
        help="seconds without requests in which processor time is read (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--out", type=Path, help="append the record to this file of JSON lines")
    args = parser.parse_args(given)
    if 0 not in args.viewers or min(args.viewers) < 0 or len(set(args.viewers)) < len(args.viewers):
        parser.error(
            "--viewers: expected different numbers of at least 0, and 0 among them, which the others are "
            f"compared with; got {' '.join(map(str, args.viewers))}"
        )
    for name in ("rounds", "requests", "at_once", "tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if args.tokens > LONGEST - PROMPT:
        parser.error(f"--tokens: expected at most {LONGEST - PROMPT}, got {args.tokens}")
    if not (isfinite(args.idle) and args.idle > 0):
        parser.error(f"--idle: expected seconds above 0, got {args.idle:g}")
    if args.out is not None:
        try:
            check_writable(args.out)
        except OutputError as error:
            parser.error(f"--out: {error}")
    return args


def one_round(server: Server, args: argparse.Namespace, number: int, count: int) -> dict[str, float]:
    """Return what one number of viewers gives, by name in the record: a load, then some seconds without one.

    Raises:
        ServerError: A request or a viewer failed, or a viewer had too few answers.
    """
    with looking(live_url(server.url), count) as viewers:
        before, started = viewers.seen(), perf_counter()
        rate = _measure(server, args, number)
        loaded, ended = viewers.seen(), perf_counter()
        answers = enough_answers(before, loaded, ended - started)
        processor = _idle(server, args.idle)
        enough_answers(loaded, viewers.seen(), perf_counter() - ended)
    own = (loaded["processor_s"] - before["processor_s"]) / (ended - started)
    return {
        "tokens_per_s": rate,
        "processor_s_per_s": processor,
        "answers": answers,
        "viewers_processor_s_per_s": own,
    }


def enough_answers(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> int:
    """Return how many answers the viewers had between two looks at them.

    Args:
        before: From `Viewers.seen`.
        after: The same, later.
        seconds: The time between the two.

    Raises:
        ServerError: A viewer failed, or had fewer than `LEAST_ANSWERS_PER_S`.
    """
    if after["failed"]:
        raise ServerError(f"viewers: {len(after['failed'])} failed, the first with: {after['failed'][0]}")
    had = [b - a for a, b in zip(before["answers"], after["answers"], strict=True)]
    least = int(LEAST_ANSWERS_PER_S * seconds)
    if min(had, default=least) < least:
        raise ServerError(
            f"viewers: expected at least {least} answers to each in {seconds:.1f} s, got {min(had)}; "
            "the server is too busy for viewers, so give it a smaller load"
        )
    return sum(had)


def _idle(server: Server, seconds: float) -> float:
    """Return the processor time per second of a server without requests, once it has come to rest."""
    time.sleep(SETTLE_S)
    started, before = perf_counter(), server.processor_s()
    time.sleep(seconds)
    return (server.processor_s() - before) / (perf_counter() - started)


def questions_ms(server: Server, count: int) -> list[float]:
    """Return the milliseconds that questions for an engine's statistics take, one after the other.

    Each sets the counters to zero, which is never answered without asking the workers.

    Raises:
        ServerError: The server refused one.
    """
    found = []
    for _ in range(count):
        started = perf_counter()
        status, answer = server.post("/v1/sere/reset", {})
        found.append(1000 * (perf_counter() - started))
        if status != 200:
            raise ServerError(f"viewers: expected status 200 of a reset, got {status}: {answer}")
    return found


def _measure(server: Server, args: argparse.Namespace, number: int) -> float:
    """Return the tokens per second of one load.

    Raises:
        ServerError: A request failed.
    """
    chance = Random(number)
    vocabulary = json.loads((model_path() / "config.json").read_text())["vocab_size"]
    prompts = [[chance.randrange(vocabulary) for _ in range(PROMPT)] for _ in range(args.requests)]
    started = perf_counter()
    answers = run_load(
        server.url, MODEL, prompts, args.tokens, Load(concurrency=args.at_once), seed=f"{number}"
    )
    seconds = perf_counter() - started
    failed = [answer.error for answer in answers if answer.error is not None]
    if failed:
        raise ServerError(f"{len(failed)} of {len(answers)} requests failed, the first with: {failed[0]}")
    return sum(answer.tokens for answer in answers) / seconds


class Viewers:
    """Viewers that look, in a process of their own; without a process there are none."""

    def __init__(self, process: subprocess.Popen[str] | None) -> None:
        """Take a process of ``viewer_process.py``."""
        self._process = process

    def seen(self, ask: bytes = b"\n") -> dict[str, Any]:
        """Return ``answers`` of each viewer so far, ``failed`` and ``processor_s``, as the process says.

        Args:
            ask: What makes it say so; it says so once unasked, when all have begun.

        Raises:
            ServerError: The process has ended.
        """
        if self._process is None:
            return {"answers": [], "failed": [], "processor_s": 0.0}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # then what it says is empty
            os.write(self._process.stdin.fileno(), ask)
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ServerError(f"viewers: expected a line from their process, which has ended with {code}")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def looking(url: str, count: int) -> Iterator[Viewers]:
    """Let so many viewers look while the block runs, which begins once each of them has had an answer.

    Raises:
        ServerError: A viewer failed before its first answer.
    """
    time.sleep(SETTLE_S)
    if not count:
        yield Viewers(None)
        return
    command = [sys.executable, "-I", str(VIEWERS), url, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            viewers = Viewers(process)
            begun = viewers.seen(ask=b"")
            enough_answers(begun, begun, 0.0)
            yield viewers
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
