"""The first fifteen minutes on a GPU: tests, times and sanitizers in pieces, the one that decides first.

    make gpu-day RESULTS=out                      go on with the next piece, until the time is up
    make gpu-day RESULTS=out REHEARSE=1           the same on a CPU: stand-ins, tiny shapes
    python benchmarks/gpu_day.py --seen earlier   with the records of an earlier call, from another folder

Each piece is a few commands in processes of their own, and is ended with all its processes when its time is
up. Its record goes to ``RESULTS/gpu_day.jsonl`` as soon as it ends, its output to ``RESULTS/gpu_day.log``,
and the measurements to ``RESULTS/gpu_*.jsonl`` while it runs: `RECORDS` names all files. A piece that ended
well on this card is not run again, so a second call goes on where the first one stopped. A piece that was cut
off starts again after those that have not begun. If a test of the first piece fails, nothing is timed. A
short table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tabulate import tabulate

from sere.files import append_json_line
from sere.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
# No piece takes longer; and none is begun with less than this left.
MOST_SECONDS, LEAST_SECONDS = 480, 30
# What two calls may take, of the 900 seconds that one has with the machine's start; a call ends after 600.
DAY_SECONDS, CALL_SECONDS = 840, 550
# Everything that a day writes. Eight files may come back from such a machine.
RECORDS = (
    "gpu_day.jsonl",
    "gpu_day.log",
    "gpu_day_kernel.jsonl",
    "gpu_transformers.jsonl",
    "gpu_similarity.jsonl",
    "gpu_engines.jsonl",
    "gpu_serve.jsonl",
)
TAIL = 1500
Command = tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A part of the day.

    Attributes:
        name: In the records and the table.
        commands: Arguments for Python, run one after the other until one fails; ``{out}`` is the results'
            folder.
        rehearsal: The same on a CPU.
        seconds: When it is cut off.
        needs: A module without which it is left out, or "".
        decides: Whether nothing else is done if it fails; it is no failure to be cut off.
    """

    name: str
    commands: tuple[Command, ...]
    rehearsal: tuple[Command, ...]
    seconds: int
    needs: str = ""
    decides: bool = False


def _tests(*arguments: str) -> Command:
    return ("-m", "pytest", "-q", "-x", "-W", "default", "-p", "no:cacheprovider", *arguments)


DOCTOR: Command = ("-m", "sere", "doctor")
SANITIZE = "tests/reroute/test_gpu_sanitize.py"
SUITE = _tests("tests/reroute", "--ignore", SANITIZE, "-m", "gpu", "-k", "not triton")
# Triton compiles every shape and option, about a second each: the whole suite is `make gpu-test`'s.
TRITON = _tests(
    "tests/reroute/test_worked_example.py", "tests/reroute/test_gpu.py", "-m", "gpu", "-k", "triton"
)
# What an engine without a GPU cannot show; four layers, because several engines are alive at once.
ENGINES: Command = (
    "-m", "sere", "bench", "serve", "--preset", "qwen3-30b-a3b", "--layers", "4", "--compile", "--vanilla",
    "--no-replay", "--load", "decode", "ttft-32", "ttft-2k", "ttft-8k", "prefill", "mixed",
    "--batch-size", "8", "32", "64", "--out", "{out}/gpu_engines.jsonl",
)  # fmt: skip
SERVE: Command = ("benchmarks/gpu_serve.py", "--out", "{out}/gpu_serve.jsonl")
TINY = ("--shape", "tiny", "--rows", "2", "--steps", "2")
TINY_SERVE: Command = (*SERVE, *TINY, "--prompts", "16", "64", "--eager")
PIECES = (
    Piece("test", (DOCTOR, SUITE), (DOCTOR, SUITE), 150, decides=True),
    Piece(
        "kernel",
        (("benchmarks/gpu_day_kernel.py", "--out", "{out}/gpu_day_kernel.jsonl"),),
        (("benchmarks/gpu_day_kernel.py", "--rehearse", "--out", "{out}/gpu_day_kernel.jsonl"),),
        110,
    ),
    Piece(
        "transformers",
        (("benchmarks/gpu_transformers.py", "--seconds", "190", "--out", "{out}/gpu_transformers.jsonl"),),
        (("benchmarks/gpu_transformers.py", *TINY, "--out", "{out}/gpu_transformers.jsonl"),),
        260,
        needs="transformers",
    ),
    Piece(
        "similarity",
        (("benchmarks/gpu_similarity.py", "--quick", "--out", "{out}/gpu_similarity.jsonl"),),
        (("benchmarks/gpu_similarity.py", "--rehearse", "--out", "{out}/gpu_similarity.jsonl"),),
        60,
    ),
    Piece("sanitize", (_tests(SANITIZE),), (_tests(SANITIZE),), 130),
    Piece("triton", (TRITON,), (TRITON,), 120),
    # Beyond the day's time, where someone has carried vLLM to the machine.
    Piece(
        "vllm",
        (
            (*SERVE, "--rows", "8", "32", "64", "--vanilla", "--seconds", "180"),
            (*SERVE, "--rows", "8", "32", "64", "--seconds", "240"),
            ENGINES,
        ),
        ((*TINY_SERVE, "--vanilla"), TINY_SERVE),
        480,
        needs="vllm",
    ),
)


def card() -> str:
    """Return the name of the GPU, or "CPU"."""
    # A machine that has just started may take a minute to read PyTorch in: the clock runs by then.
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def ends(results: Path, where: str, *, rehearse: bool) -> dict[str, str]:
    """Return how each piece ended last on this card, in this call or an earlier one of its kind."""
    path = results / "gpu_day.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    mine = [one for one in records if (one["card"], one["rehearsal"]) == (where, rehearse)]
    return {one["piece"]: one["ended"] for one in mine}


def take_over(seen: Path, results: Path) -> None:
    """Copy an earlier call's records into the results' folder, those that are not there yet.

    Raises:
        SystemExit: There are none.
    """
    if not (seen / RECORDS[0]).is_file():
        raise SystemExit(
            f"--seen {seen}: expected the records of an earlier call, and there is no {RECORDS[0]}"
        )
    for name in RECORDS:
        if (seen / name).is_file() and not (results / name).exists():
            shutil.copyfile(seen / name, results / name)


def _run(line: list[str], out: Any, environment: dict[str, str], seconds: float) -> str:
    """Run one command and return how it ended; at its end none of its processes is left on the device."""
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=out, stderr=out, process_group=0)
    try:
        return "well" if process.wait(timeout=max(1, seconds)) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_piece(piece: Piece, results: Path, *, rehearse: bool, seconds: float) -> dict[str, Any]:
    """Run a piece's commands; return how it ended, after how many seconds, and the end of its output."""
    if piece.needs and find_spec(piece.needs) is None:
        return {"ended": "left out", "seconds": 0.0, "tail": f"{piece.needs} is not installed"}
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    started, log, ended = time.monotonic(), results / "gpu_day.log", "well"
    with log.open("a", encoding="utf-8") as out:
        print(f"== {piece.name}", file=out, flush=True)
        begin = out.tell()
        for command in piece.rehearsal if rehearse else piece.commands:
            line = [sys.executable, *(part.replace("{out}", str(results)) for part in command)]
            ended = _run(line, out, environment, seconds - (time.monotonic() - started))
            if ended != "well":
                break
    tail = log.read_bytes()[begin:].decode("utf-8", "replace")[-TAIL:]
    return {"ended": ended, "seconds": time.monotonic() - started, "tail": tail}


def in_order(pieces: Sequence[Piece], ended: dict[str, str]) -> list[Piece]:
    """Return the pieces as they are to be run: those that were cut off last."""
    return sorted(pieces, key=lambda piece: ended.get(piece.name) == "cut off")


def spend(pieces: Sequence[Piece], results: Path, *, rehearse: bool, until: float) -> list[list[Any]]:
    """Run what is not done yet, in order, until the clock says so; return the table's rows."""
    where, rows = card(), []
    ended = ends(results, where, rehearse=rehearse)
    for piece in in_order(pieces, ended):
        left = until - time.monotonic()
        if ended.get(piece.name) == "well":
            rows.append([piece.name, "done before", 0.0])
            continue
        if left < LEAST_SECONDS:
            rows.append([piece.name, "not begun: call again", 0.0])
            continue
        print(f"{piece.name} ...", file=sys.stderr, flush=True)
        # What a piece may take on a GPU says nothing of a CPU.
        most = min(left, MOST_SECONDS if rehearse else piece.seconds)
        found = run_piece(piece, results, rehearse=rehearse, seconds=most)
        record = {"benchmark": "gpu_day", "piece": piece.name, "card": where, "rehearsal": rehearse, **found}
        append_json_line(results / "gpu_day.jsonl", {**record, **provenance()})
        rows.append([piece.name, found["ended"], found["seconds"]])
        if found["ended"] in {"failed", "cut off"}:
            print(found["tail"])
        if piece.decides and found["ended"] == "failed":
            print(f"{piece.name} failed: nothing is timed")
            break
    return rows


def main() -> int:
    """Spend the day and print the table last; 1 if a piece failed or was cut off."""
    parser = argparse.ArgumentParser(description="The first fifteen minutes on a GPU.")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: stand-ins and tiny shapes")
    parser.add_argument(
        "--only", nargs="+", choices=[piece.name for piece in PIECES], help="these pieces alone"
    )
    parser.add_argument(
        "--seconds", type=float, default=CALL_SECONDS, help="all pieces of this call together"
    )
    parser.add_argument("--results", type=Path, default=Path("out"))
    parser.add_argument("--seen", type=Path, help="a folder with the records of an earlier call")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    if not arguments.rehearse and card() == "CPU":
        raise SystemExit("no CUDA device here: nothing to measure (REHEARSE=1 tries every piece on a CPU)")
    results = arguments.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    if arguments.seen is not None:
        take_over(arguments.seen, results)
    pieces = [piece for piece in PIECES if arguments.only is None or piece.name in arguments.only]
    rows = spend(pieces, results, rehearse=arguments.rehearse, until=until)
    meaning = ", a rehearsal: the numbers mean nothing" if arguments.rehearse else ""
    print(f"{card()}{meaning}; records in {results}")
    print(tabulate(rows, ["piece", "ended", "seconds"], floatfmt=".0f"))
    return int(any(ended in {"failed", "cut off"} for _, ended, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
