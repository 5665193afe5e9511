"""The serving benchmark: what it refuses, and all of it on a CPU with the tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.checkout


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/gpu_serve.py", *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_nothing_to_serve_with() -> None:
    """Without vLLM, or without a GPU that nobody asked to do without, it ends with one line."""
    done = run(CUDA_VISIBLE_DEVICES="")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(
        ("nothing to serve: vLLM is not installed", "nothing to serve: no CUDA device here")
    )


@pytest.mark.vllm
def test_tiny_shape_on_a_cpu(tmp_path: Path) -> None:
    """Without a GPU it serves the tiny shape: S = 1 alone reads the fewest experts; off re-routes none."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    out = tmp_path / "out.jsonl"
    done = run(
        "--shape", "tiny", "--rows", "8", "--steps", "4", "--prompts", "40", "--eager", "--out", str(out),
        VLLM_CPU_KVCACHE_SPACE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record, first = [json.loads(line) for line in out.read_text().splitlines()]
    labels = ["off", "sere", "sere:active_experts=0", "sere:select_top_k=2,active_experts=0"]
    off, default, one, two = (record["settings"][label] for label in labels)
    assert one["distinct_after"] < two["distinct_after"] < one["distinct_before"]
    assert one["distinct_after"] < default["distinct_after"] <= default["distinct_before"]
    assert off["distinct_after"] == off["distinct_before"] > two["distinct_after"]
    assert off["slots_rerouted"] == 0
    assert [*first["first_tokens"]["40"]] == labels
    assert all(one["ttft_ms"] > 0 for one in first["first_tokens"]["40"].values())
    assert "the numbers mean nothing" in done.stdout


@pytest.mark.vllm
@pytest.mark.slow
def test_an_engine_without_the_plug_in(tmp_path: Path) -> None:
    """What the launches cost is told by an engine that never loads sere: it has times, and counts nothing."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    out = tmp_path / "out.jsonl"
    done = run(
        "--shape", "tiny", "--rows", "2", "--steps", "2", "--prompts", "40", "--eager", "--vanilla",
        "--out", str(out), VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="INFO",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record, first = [json.loads(line) for line in out.read_text().splitlines()]
    assert [*record["settings"]] == [*first["first_tokens"]["40"]] == ["vanilla"]
    assert [*record["settings"]["vanilla"]] == ["tpot_ms", "p20", "p80", "tokens_per_s"]
    assert "sere:" not in done.stderr
