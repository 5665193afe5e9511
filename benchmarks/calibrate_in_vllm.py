"""Memory and time of calibration within vLLM, at a published model's layer shape with random weights.

    python benchmarks/calibrate_in_vllm.py --preset qwen3-30b-a3b --layers 2 --tokens 51200
    python benchmarks/calibrate_in_vllm.py --preset tiny --tokens 1024

A checkpoint with so many layers is written to a temporary folder. Random tokens are read in the batches that
`sere calibrate --engine vllm` reads; starting the engine is not part of the time. One JSON line per run is
printed and, with --out, appended to a file: seconds for these layers and tokens, seconds per layer, and the
largest memory, of the process (on a CPU) or of the device (on a GPU, where it includes vLLM's cache).
It needs vLLM, and runs one worker in this process.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
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
from sere.provenance import provenance


def main() -> None:
    """Calibrate, and print one record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model (default: 2)")
    parser.add_argument("--tokens", type=int, default=51_200, help="calibration tokens (default: 51200)")
    parser.add_argument("--metric", default="projection")
    parser.add_argument("--chunk-mb", type=int, default=256, help="experts' outputs held at a time")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="threads of torch, on a CPU")
    parser.add_argument("--out", type=Path, help="file to append the record to")
    args = parser.parse_args()
    record = measure(args)
    print(json.dumps(record))
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one calibration."""
    dtype = getattr(torch, args.dtype)
    config = CalibrationConfig(
        metric=args.metric, max_tokens=args.tokens, dtype=dtype, chunk_bytes=args.chunk_mb * 2**20,
        engine="vllm", progress="always", sensitivity=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sere-calibrate-") as folder:
        model = random_model(args.preset, layers=args.layers, dtype=dtype)
        model.save_pretrained(folder)
        vocabulary = int(model.config.vocab_size)
        del model
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (args.tokens,), generator=generator)
        with in_process_engine(folder, threads=args.threads, **engine_options(config, writes=0)) as llm:
            before = time.perf_counter()
            found = collect_in_engine(llm, Tokens(ids, config.seq_len), config)
            seconds = time.perf_counter() - before
            memory = memory_bytes()
            del llm
    return {
        "benchmark": "calibrate_in_vllm",
        "config": {
            "preset": args.preset, "layers": args.layers, "tokens": args.tokens, "metric": args.metric,
            "dtype": args.dtype, "chunk_mb": args.chunk_mb, "threads": args.threads,
            "device": "cuda" if torch.cuda.is_available() else "cpu", "kernels": list(found.kernels),
        },
        "seconds": round(seconds, 3),
        "seconds_per_layer": round(seconds / args.layers, 3),
        "peak_bytes": memory,
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
