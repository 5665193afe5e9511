"""``sere eval --engine vllm`` on small engines: the same questions and marks as in Transformers."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bundled import model_path
from sere.cli import main
from sere.engines.in_process import state_of, worker_of
from sere.eval.plan import QuestionPlan
from sere.eval.questions import held_out
from sere.eval.vllm import evaluate_engine
from sere.policies.spec import parse_specs
from sere.similarity.layer import LayerSimilarity
from sere.table import SimilarityTable
from tests.support.vllm.engines import engine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_evaluate(tmp_path: Path) -> None:
    """Where nothing can be moved every mark is that of off; factors asked for get their own engine."""
    path, table = model_path(), scaled_table(tmp_path)
    alike = [f"{name}:select_top_k=8" for name in ("sere", "random", "topk", "oea")]
    moving = [
        "sere:select_top_k=1,active_experts=0",
        "random:select_top_k=1,active_experts=0",
        "topk:select_top_k=1",
        "oea:select_top_k=1",
    ]
    rivals = ["drop:active_experts=24", "drop:active_experts=24,renormalize=true", "pool:size=32"]
    rivals += ["prune:size=32", "topp:p=0.5", "xshare:budget=24", "lynx:drop_share=0.6"]
    rivals += ["budget:budget=24", "budget:budget=24,mode=truncate"]
    filled = "sere:select_top_k=1,active_experts=24,use_scale=true"
    plan = QuestionPlan(
        settings=parse_specs([*alike, *moving, *rivals, filled]),
        batch_sizes=[8],
        questions=held_out(6, tasks=["addition", "reversal"]),
        max_new_tokens=100,
    )
    started: list[dict[str, Any]] = []
    models: list[weakref.ref[Any]] = []

    @contextmanager
    def start(options: Mapping[str, Any]) -> Iterator[Any]:
        assert [model() for model in models] == [None] * len(models)
        with engine(path, {"select_top_k": 1, "table": str(table)} | dict(options)) as llm:
            models.append(weakref.ref(worker_of(llm).model_runner.model))
            started.append({name: getattr(state_of(llm).config, name) for name in options})
            yield llm

    record = evaluate_engine(
        start, AutoTokenizer.from_pretrained(path), plan, table=SimilarityTable.load(table), dtype="bfloat16"
    )
    assert started == [{}, {"use_scale": True}]
    off, *others = record["cases"]
    assert [case["setting"] for case in others] == [*alike, *moving, *rivals, filled]
    assert off["tasks"]["all"]["right"] > 6
    assert off["experts"]["distinct_after"] == off["experts"]["distinct_before"]
    assert 4 < off["mean_rows"] <= 8
    for case in others[: len(alike)]:
        assert case["tasks"]["all"]["marks"] == off["tasks"]["all"]["marks"], case["setting"]
        # Steps that a rule leaves alone are not among those that it counts.
        assert case["experts"]["distinct_after"] == case["experts"]["distinct_before"], case["setting"]
        assert "keeps all 8 slots of a token" in case["nothing_changed"], case["setting"]
    *fewer, floored = (case["experts"] for case in others[len(alike) :])
    assert max(experts["distinct_after"] for experts in fewer[: len(moving)]) <= 8
    for name, experts in zip(rivals, fewer[len(moving) :], strict=True):
        assert experts["distinct_after"] < 0.9 * experts["distinct_before"], name
    # Steps of few rows are left alone and not counted; those with rows of a prompt read more than 24.
    assert 24 <= floored["distinct_after"] < 0.9 * floored["distinct_before"]
    assert [case["nothing_changed"] for case in (off, *others[len(alike) :])] == [None] * (
        len(moving) + len(rivals) + 2
    )
    assert record["model"]["experts_implementation"] == "vllm"


def test_evaluate_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sere eval --engine vllm`` starts engines with the checkpoint's dtype and leaves one file."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    out = tmp_path / "out" / "eval.json"
    argv = ["eval", "bundled", "--engine", "vllm", "--table", str(scaled_table(tmp_path)), "--out", str(out),
            "--batch-size", "4", "--per-task", "1", "--tasks", "addition", "sorting",
            "--setting", "sere:select_top_k=8,active_experts=9,use_scale=true",
            "--setting", "random:select_top_k=8", "--setting", "oea:select_top_k=8"]  # fmt: skip
    assert main(argv) == 0
    record = json.loads(out.read_text())
    assert list(out.parent.iterdir()) == [out]
    assert record["model"]["dtype"] == "bfloat16"
    labels = ["off", "sere:select_top_k=8,active_experts=9,use_scale=true", "random:select_top_k=8"]
    labels.append("oea:select_top_k=8")
    assert [case["setting"] for case in record["cases"]] == labels
    assert len({case["tasks"]["all"]["marks"] for case in record["cases"]}) == 1
    said = capsys.readouterr()
    assert "B=4 random:select_top_k=8: done" in said.err
    reason = "nothing was re-routed: select_top_k=8 keeps all 8 slots of a token"
    for name in ("random", "oea"):
        assert f"B=4 {name}:select_top_k=8: {reason}" in said.out


def scaled_table(folder: Path) -> Path:
    """Write random similarities of the bundled model, with factors."""
    from sere.bench.target import random_table

    table = random_table(AutoModelForCausalLM.from_pretrained(model_path()))
    scaled = {
        index: LayerSimilarity(layer.similarity, torch.full_like(layer.similarity, 0.5))
        for index, layer in table.layers.items()
    }
    path = folder / "table.safetensors"
    dataclasses.replace(table, layers=scaled).save(path)
    return path
