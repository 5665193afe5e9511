"""The first fifteen minutes on a GPU: tests, times and sanitizers in pieces, the one that decides first.

    make gpu-day RESULTS=out                 go on with the next piece, until the time is up
    make gpu-day RESULTS=out REHEARSE=1      the same on a CPU: stand-ins, tiny shapes

Each piece is a few commands in processes of their own, and ends after at most eight minutes. Its record goes
to ``RESULTS/gpu_day.jsonl`` as soon as it ends, and the measurements to ``RESULTS/gpu_*.jsonl`` while it
runs. A piece that ended well on this card is not run again, so a second call goes on where the first one
stopped, and a piece that was cut off starts again. If the first piece fails, nothing is timed. A short table
comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from sere.files import append_json_line
from sere.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
# No piece takes longer; and none is begun with less than this left.
MOST_SECONDS, LEAST_SECONDS = 480, 30
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
        decides: Whether nothing else is done if it fails.
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
LOADS = ("--vanilla", "--no-replay", "--load", "ttft-2k", "ttft-8k", "--out", "{out}/gpu_engines.jsonl")
PIECES = (
    Piece(
        "test",
        (DOCTOR, _tests("tests/reroute", "--ignore", SANITIZE, "-m", "gpu")),
        (DOCTOR, _tests("tests/reroute/test_worked_example.py", "-k", "shim")),
        300,
        decides=True,
    ),
    Piece(
        "kernel",
        (("benchmarks/gpu_day_kernel.py", "--out", "{out}/gpu_day_kernel.jsonl"),),
        (("benchmarks/gpu_day_kernel.py", "--rehearse", "--out", "{out}/gpu_day_kernel.jsonl"),),
        200,
    ),
    Piece(
        "transformers",
        (("benchmarks/gpu_transformers.py", "--out", "{out}/gpu_transformers.jsonl"),),
        ((
            "benchmarks/gpu_transformers.py", "--shape", "tiny", "--rows", "2", "--steps", "2",
            "--out", "{out}/gpu_transformers.jsonl",
        ),),
        480,
        needs="transformers",
    ),
    Piece(
        "similarity",
        (("benchmarks/gpu_similarity.py", "--quick", "--out", "{out}/gpu_similarity.jsonl"),),
        (("benchmarks/gpu_similarity.py", "--rehearse", "--out", "{out}/gpu_similarity.jsonl"),),
        120,
    ),
    Piece("sanitize", (_tests(SANITIZE),), (_tests(SANITIZE),), 480),
    Piece(
        "vllm",
        (
            ("-m", "sere", "bench", "serve", "--preset", "qwen3-30b-a3b", "--compile", *LOADS),
            ("benchmarks/gpu_serve.py", "--seconds", "240", "--out", "{out}/gpu_serve.jsonl"),
        ),
        (("benchmarks/gpu_serve.py", "--shape", "tiny", "--rows", "2", "--steps", "2", "--eager",
          "--out", "{out}/gpu_serve.jsonl"),),
        480,
        needs="vllm",
    ),
)  # fmt: skip


def card() -> str:
    """Return the name of the GPU, or "CPU"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def done(results: Path, name: str, where: str) -> bool:
    """Whether a piece ended well on this card in an earlier call."""
    path = results / "gpu_day.jsonl"
    if not path.exists():
        return False
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return any((one["piece"], one["card"], one["ended"]) == (name, where, "well") for one in records)


def run_piece(piece: Piece, results: Path, *, rehearse: bool, seconds: float) -> dict[str, Any]:
    """Run a piece's commands; return how it ended, after how many seconds, and the end of its output."""
    if piece.needs and find_spec(piece.needs) is None:
        return {"ended": "left out", "seconds": 0.0, "tail": f"{piece.needs} is not installed"}
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    started, log = time.monotonic(), results / f"{piece.name}.log"
    ended = "well"
    with log.open("w", encoding="utf-8") as out:
        for command in piece.rehearsal if rehearse else piece.commands:
            line = [sys.executable, *(part.replace("{out}", str(results)) for part in command)]
            left = seconds - (time.monotonic() - started)
            try:
                code = subprocess.run(
                    line, cwd=ROOT, env=environment, stdout=out, stderr=out, check=False, timeout=max(1, left)
                ).returncode
            except subprocess.TimeoutExpired:
                ended = "cut off"
                break
            if code != 0:
                ended = "failed"
                break
    tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
    return {"ended": ended, "seconds": time.monotonic() - started, "tail": tail}


def spend(pieces: Sequence[Piece], results: Path, *, rehearse: bool, seconds: float) -> list[list[Any]]:
    """Run what is not done yet, in order, until the time is up; return the table's rows."""
    where, until, rows = card(), time.monotonic() + seconds, []
    for piece in pieces:
        left = until - time.monotonic()
        if done(results, piece.name, where):
            rows.append([piece.name, "done before", 0.0])
            continue
        if left < LEAST_SECONDS:
            rows.append([piece.name, "not begun: call again", 0.0])
            continue
        print(f"{piece.name} ...", file=sys.stderr, flush=True)
        found = run_piece(piece, results, rehearse=rehearse, seconds=min(left, piece.seconds, MOST_SECONDS))
        record = {"benchmark": "gpu_day", "piece": piece.name, "card": where, "rehearsal": rehearse, **found}
        append_json_line(results / "gpu_day.jsonl", {**record, **provenance()})
        rows.append([piece.name, found["ended"], found["seconds"]])
        if found["ended"] in {"failed", "cut off"}:
            print(found["tail"])
        if piece.decides and found["ended"] != "well":
            print(f"{piece.name} did not end well: nothing is timed")
            break
    return rows


def main() -> int:
    """Spend the day and print the table last; 1 if a piece failed or was cut off."""
    parser = argparse.ArgumentParser(description="The first fifteen minutes on a GPU.")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: stand-ins and tiny shapes")
    parser.add_argument(
        "--only", nargs="+", choices=[piece.name for piece in PIECES], help="these pieces alone"
    )
    parser.add_argument("--seconds", type=float, default=840, help="no piece runs longer than this in all")
    parser.add_argument("--results", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to measure (REHEARSE=1 tries every piece on a CPU)")
    results = arguments.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    pieces = [piece for piece in PIECES if arguments.only is None or piece.name in arguments.only]
    rows = spend(pieces, results, rehearse=arguments.rehearse, seconds=arguments.seconds)
    meaning = ", a rehearsal: the numbers mean nothing" if arguments.rehearse else ""
    print(f"{card()}{meaning}; records in {results}")
    print(tabulate(rows, ["piece", "ended", "seconds"], floatfmt=".0f"))
    return int(any(ended in {"failed", "cut off"} for _, ended, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
