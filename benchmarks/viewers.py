"""What viewers of the live page cost: tokens per second of a real ``vllm serve`` with 0, 1 and 20 of them.

Run ``make viewers`` (or ``python benchmarks/viewers.py`` in an environment with vLLM). A round measures each
number of viewers once, in an order that rotates from round to round. A viewer asks for what the page shows
once a second, as the page does; all of them are one process of their own. Printed are the medians, and the
median of the rounds' ratios to no viewer with its interval (95 %, bootstrap over the rounds).

Throughput on a machine that others share scatters by far more than viewers cost. So each time the load is
followed by some seconds without requests, in which the processor time of the server's processes is read: what
it is more than without viewers is what they cost, whether or not it can be seen in throughput.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from tabulate import tabulate

from bundled_table import random_bundled_table
from sere.bench.timing import turns
from sere.bench.vllm.load_generator import Load, run_load
from sere.bundled import model_path
from sere.engines.server import Server, serve
from sere.errors import ServerError
from sere.eval.statistics.by_prompt import Estimate
from sere.eval.statistics.by_round import median_of, median_ratio
from sere.files import append_json_line
from sere.integrations.vllm.live.fetch import fetch_live, live_url
from sere.provenance import provenance

FORMAT = "sere-viewers-1"
START_S = 900.0
MODEL = "tiny"
# Between two measurements: viewers have begun, and the last ones are gone.
SETTLE_S = 1.5


def main() -> int:
    """Measure one server and print the table."""
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
    args = parser.parse_args()
    if 0 not in args.viewers:
        parser.error("--viewers: expected 0 among the numbers, which the others are compared with")
    with tempfile.TemporaryDirectory(prefix="sere-viewers-") as folder:
        table = Path(folder) / "table.sere"
        random_bundled_table().save(table)
        flags = ["--served-model-name", MODEL, "--max-model-len", "256", "--max-num-seqs", "32"]
        flags += ["--enforce-eager"] if args.eager else []
        given = {"table": str(table), "active_experts": 24, "live_page": True}
        with serve(model_path(), given, Path(folder) / "log", *flags, start_s=START_S) as server:
            _measure(server, args, 0)  # the first requests compile
            rates: dict[int, list[float]] = {count: [] for count in args.viewers}
            processor: dict[int, list[float]] = {count: [] for count in args.viewers}
            for number in range(args.rounds):
                for count in turns(args.viewers, number):
                    with _viewers(live_url(server.url), count):
                        rates[count].append(_measure(server, args, number))
                        processor[count].append(_idle(server, args.idle))
                print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    print(render(rates, processor))
    if args.out is not None:
        config = {name: value for name, value in vars(args).items() if name != "out"}
        record = {"format": FORMAT, "config": config, "tokens_per_s": rates, "processor_s_per_s": processor}
        append_json_line(args.out, record | {"provenance": provenance()})
    return 0


def render(rates: Mapping[int, Sequence[float]], processor: Mapping[int, Sequence[float]]) -> str:
    """Return, for each number of viewers, median rate, ratio to no viewer and processor time, as text.

    Args:
        rates: Tokens per second of each round, by the number of viewers, 0 among them.
        processor: Processor time per second without requests, in the same form.
    """
    rows = []
    for count, found in rates.items():
        more = median_of([100 * (a - b) for a, b in zip(processor[count], processor[0], strict=True)])
        cells = (*_cells(median_ratio(found, rates[0]), 4), *_cells(more, 2))
        rows.append([count, f"{median(found):.1f}", *cells])
    heads = ["viewers", "tokens/s", "to no viewer", "95 %", "% of a core", "95 %"]
    return str(tabulate(rows, heads, missingval="-", disable_numparse=True))


def _cells(found: Estimate, digits: int) -> tuple[str, str | None]:
    """Return a value and its interval."""
    bounds = None if found.low is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    return f"{found.value:.{digits}f}", bounds


def _idle(server: Server, seconds: float) -> float:
    """Return the processor time per second of a server without requests, once it has come to rest."""
    time.sleep(SETTLE_S)
    started, before = perf_counter(), server.processor_s()
    time.sleep(seconds)
    return (server.processor_s() - before) / (perf_counter() - started)


def _measure(server: Server, args: argparse.Namespace, number: int) -> float:
    """Return the tokens per second of one load.

    Raises:
        ServerError: A request failed.
    """
    chance = Random(number)
    vocabulary = json.loads((model_path() / "config.json").read_text())["vocab_size"]
    prompts = [[chance.randrange(vocabulary) for _ in range(8)] for _ in range(args.requests)]
    started = perf_counter()
    answers = run_load(
        server.url, MODEL, prompts, args.tokens, Load(concurrency=args.at_once), seed=f"{number}"
    )
    seconds = perf_counter() - started
    failed = [answer.error for answer in answers if answer.error is not None]
    if failed:
        raise ServerError(f"{len(failed)} of {len(answers)} requests failed, the first with: {failed[0]}")
    return sum(answer.tokens for answer in answers) / seconds


@contextmanager
def _viewers(url: str, count: int) -> Iterator[None]:
    """Let so many viewers look while the block runs."""
    looking = multiprocessing.get_context("spawn").Process(target=_look, args=(url, count), daemon=True)
    if count:
        looking.start()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        if count:
            looking.terminate()
            looking.join()


def _look(url: str, count: int) -> None:
    """Ask as so many pages do, until this process is ended."""
    threads = [threading.Thread(target=_page, args=(url,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _page(url: str) -> None:
    points: Sequence[Any] = []
    while True:
        points = fetch_live(url, None, points[-1]["at"] if points else 0.0)["points"] or points
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
