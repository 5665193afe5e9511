"""Memory and time of calibration within vLLM, at a published model's layer shape with random weights.

    python benchmarks/calibrate_in_vllm.py --preset qwen3-30b-a3b --layers 2 --tokens 51200
    python benchmarks/calibrate_in_vllm.py --preset qwen3-30b-a3b --layers 1 --seconds 1200 --out out.jsonl
    python benchmarks/calibrate_in_vllm.py --preset tiny --tokens 1024

A checkpoint with so many layers is written to a temporary folder. Random tokens are read in the batches that
`sere calibrate --engine vllm` reads; starting the engine is not part of the time. One JSON line per run is
printed and, with --out, appended to a file: the tokens that were read, the seconds that they took in these
layers, and the largest memory, of the process (on a CPU) or of the device (on a GPU, where it includes vLLM's
cache). A line a minute says how far it is, and FILE.partial has what is known by then. With --seconds, it
ends with the first batch after so many seconds: then fewer tokens were read, and no table was computed.
It needs vLLM, and runs one worker in this process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sere.bench.shapes import SHAPES
from sere.bench.target import random_model
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.packing import Tokens
from sere.calibrate.vllm.collect import collect_in_engine
from sere.calibrate.vllm.options import engine_options
from sere.engines.in_process import in_process_engine
from sere.files import write_json
from sere.provenance import provenance

_SAY_S = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, and print one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model (default: 2)")
    parser.add_argument("--tokens", type=int, default=51_200, help="calibration tokens (default: 51200)")
    parser.add_argument("--metric", default="projection")
    parser.add_argument("--chunk-mb", type=int, default=256, help="experts' outputs held at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="threads of torch, on a CPU")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop reading after so many seconds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to append the record to")
    args = parser.parse_args(argv)
    record = measure(args)
    print(json.dumps(record))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        partial_of(args.out).unlink(missing_ok=True)


def partial_of(out: Path) -> Path:
    """Return where the record of a run that is not at its end lies."""
    return out.with_name(f"{out.name}.partial")


class EnoughError(Exception):
    """The time that was given is over."""


class Watch:
    """Says once a minute how far the reading is, keeps that in a file, and ends it in time.

    Args:
        limit: Seconds after which no further batch is read.
        keep: Takes tokens and seconds so far, once a minute.
        clock: Returns seconds.

    Attributes:
        tokens: Tokens that were read.
        seconds: What they took.
    """

    def __init__(
        self,
        limit: float,
        keep: Callable[[int, float], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limit, self._keep, self._clock = limit, keep, clock
        self.tokens, self.seconds = 0, 0.0

    @contextmanager
    def __call__(self, _label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Begin, as `sere.progress.Progress`."""
        before = said = self._clock()

        def read(count: int) -> None:
            nonlocal said
            now = self._clock()
            self.tokens, self.seconds = self.tokens + count, now - before
            if now - said >= _SAY_S:
                said = now
                left = self.seconds / self.tokens * (total - self.tokens)
                print(
                    f"{self.tokens} of {total} tokens in {self.seconds:.0f} s, about {left:.0f} s left",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                self._keep(self.tokens, self.seconds)
            if self.seconds >= self._limit and self.tokens < total:
                raise EnoughError

        yield read


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one calibration."""
    dtype = getattr(torch, args.dtype)

    def keep(tokens: int, seconds: float) -> None:
        if args.out is not None:
            write_json(partial_of(args.out), record_of(args, tokens, seconds))

    watch = Watch(args.seconds, keep)
    config = CalibrationConfig(
        metric=args.metric, max_tokens=args.tokens, dtype=dtype, chunk_bytes=args.chunk_mb * 2**20,
        engine="vllm", progress=watch, sensitivity=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sere-calibrate-") as folder:
        model = random_model(args.preset, layers=args.layers, dtype=dtype)
        model.save_pretrained(folder)
        vocabulary = int(model.config.vocab_size)
        del model
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (args.tokens,), generator=generator)
        with in_process_engine(folder, threads=args.threads, **engine_options(config, writes=0)) as llm:
            before, kernels, seconds = time.perf_counter(), None, None
            try:
                found = collect_in_engine(llm, Tokens(ids, config.seq_len), config)
                kernels, seconds = list(found.kernels), time.perf_counter() - before
            except EnoughError:
                print(f"stopped after {args.seconds:g} s", file=sys.stderr)
            # With what is computed at the end, if that was reached.
            record = record_of(args, watch.tokens, seconds or watch.seconds, kernels)
            del llm
    return record


def record_of(
    args: argparse.Namespace, tokens: int, seconds: float, kernels: list[str] | None = None
) -> dict[str, Any]:
    """Return the record of a calibration; ``kernels`` is None of one that is not at its end."""
    return {
        "benchmark": "calibrate_in_vllm",
        "config": {
            "preset": args.preset, "layers": args.layers, "tokens": args.tokens, "metric": args.metric,
            "dtype": args.dtype, "chunk_mb": args.chunk_mb, "threads": args.threads,
            "device": "cuda" if torch.cuda.is_available() else "cpu", "kernels": kernels,
        },
        "tokens_read": tokens,
        "complete": kernels is not None,
        "seconds": round(seconds, 3),
        "seconds_per_layer": round(seconds / args.layers, 3),
        "tokens_per_second": round(tokens / seconds, 3) if seconds else None,
        "peak_bytes": memory_bytes(),
        **provenance(),
    }  # fmt: skip


def memory_bytes() -> int:
    """Return the largest memory so far: of the device, or of this process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
