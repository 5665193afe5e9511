"""The serving benchmark: what it refuses, and all of it on a CPU with the tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_serve
from tests.support.patience import HANGS_S

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.checkout


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/gpu_serve.py", *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=HANGS_S,
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


def test_an_engine_without_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What re-routing costs is told by an engine without sere: it has times, and there is nothing to ask."""
    monkeypatch.setattr(gpu_serve, "generate_ms", lambda _, prompts, tokens: float(len(prompts) * tokens))
    no_engine = None
    (only,) = gpu_serve.measure(no_engine, gpu_serve.VANILLA, 2, 4, 100).items()
    assert only == ("vanilla", {"tpot_ms": 2.0, "p20": 2.0, "p80": 2.0, "tokens_per_s": 1000.0})
    assert gpu_serve.rows_of(2, dict([only])) == [
        [2, "vanilla", 2.0, 2.0, 2.0, 1000.0, None, None, None, 1.0]
    ]
    found = gpu_serve.first_tokens(no_engine, gpu_serve.VANILLA, (16, 64), 100)
    assert found == {str(n): {"vanilla": {"ttft_ms": 1.0, "p20": 1.0, "p80": 1.0}} for n in (16, 64)}
