"""``sere bench serve`` and ``sere eval --engine vllm`` on small engines: what they count, not how fast."""

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

from tests.support.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.vllm.in_process import InProcessPlan, bench_in_process
from sere.bench.vllm.replay import record_routing, replayed, vanilla
from sere.bundled import model_path
from sere.cli import main
from sere.cli.bench.serve_tables import render
from sere.engines.in_process import state_of, worker_of
from sere.engines.settings import routed
from sere.errors import InputError, UnsupportedEngine
from sere.eval.plan import QuestionPlan
from sere.eval.questions import held_out
from sere.eval.vllm import evaluate_engine
from sere.integrations.vllm import read_stats
from sere.policies.spec import parse_specs
from sere.similarity.layer import LayerSimilarity
from sere.table import SimilarityTable
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bench(tmp_path: Path, compiled: bool) -> None:
    """Off, S = 1 and its replay side by side; a floor has its own engine with its own off, and holds."""
    path = save_model(tmp_path)
    started: list[dict[str, Any]] = []

    @contextmanager
    def start(settings: Mapping[str, Any]) -> Iterator[Any]:
        started.append(dict(settings))
        options = {"enforce_eager": not compiled, "async_scheduling": False}
        with engine(path, {"select_top_k": 1} | dict(settings), **options) as llm:
            yield llm

    plan = InProcessPlan(
        settings=parse_specs([f"sere:select_top_k={rest}" for rest in ("1", "4", "1,min_active=10")]),
        batch_sizes=[6], prompt=8, steps=6, rounds=1, compiled=compiled, engine_options={"block_size": 32},
    )  # fmt: skip
    records = list(bench_in_process(start, {"model": "m"}, plan))
    assert started == [{}, {"min_active": 10}]
    assert [(r["setting"], r["config"]["start"]) for r in records] == [
        (name, options)
        for options, labels in (
            ({}, ["sere:select_top_k=1", "sere:select_top_k=4"]),
            ({"min_active": 10}, ["sere:select_top_k=1,min_active=10"]),
        )
        for name in [
            "off",
            *(name for label in labels for name in (label, f"replay {label}")),
            *["vanilla"] * (not compiled),
        ]
    ]
    reasons = {record["setting"]: record["nothing_changed"] for record in records}
    assert "select_top_k=4 keeps all 4 slots of a token" in str(reasons.pop("sere:select_top_k=4"))
    assert set(reasons.values()) == {None}
    assert "B=6 sere:select_top_k=4: nothing was re-routed: select_top_k=4" in render(records)
    offs = [record for record in records if record["setting"] == "off"]
    one, _, floored = (r for r in records if r["setting"].startswith("sere:"))
    for off in offs:
        assert off["experts"]["distinct_after"] == off["experts"]["distinct_before"]
        assert off["speedup"] == {"p20": 1, "p50": 1, "p80": 1}
        assert off["overhead"] is None
        assert off["config"]["mode"] == ("compiled" if compiled else "eager")
        assert off["config"]["engine_options"] == {"block_size": 32}
    assert one["experts"]["distinct_after"] < 8
    assert 9.5 < floored["experts"]["distinct_after"] <= 10 < floored["experts"]["distinct_before"]
    per_expert = one["subject"]["bytes_per_expert"]
    assert one["subject"]["moe_layers"] == 2
    assert one["expert_bytes_per_step"] == round(one["experts"]["distinct_after"] * per_expert * 2)
    assert one["overhead"]["us_per_layer"] > 0
    assert records[2]["experts"] is None
    assert one["provenance"]["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_replay(tmp_path: Path, compiled: bool) -> None:
    """Recorded ids put in place give the tokens that they were recorded with, and re-route nothing."""
    options = {"enforce_eager": not compiled, "async_scheduling": False}
    with engine(save_model(tmp_path), {"select_top_k": 1}, **options) as llm:
        expected = generate(llm, prompts())
        recording = record_routing(llm, lambda: generate(llm, prompts()))
        read_stats(llm, reset=True)
        for _ in range(2):
            with replayed(llm, recording):
                assert generate(llm, prompts()) == expected
        assert read_stats(llm).layers[0].steps == 0


def test_bench_of_controls(tmp_path: Path) -> None:
    """Controls take turns with off in one eager engine; each runs its own experts and has no replay."""
    plan = InProcessPlan(
        settings=parse_specs(["topk:select_top_k=1", "random:select_top_k=1"]),
        batch_sizes=[6],
        prompt=8,
        steps=6,
        rounds=1,
    )
    path = save_model(tmp_path)

    def start(settings: Mapping[str, Any]) -> Any:
        return engine(path, {"select_top_k": 1} | dict(settings), async_scheduling=False)

    off, *others = bench_in_process(start, {}, plan)
    assert [record["setting"] for record in others] == [
        "topk:select_top_k=1",
        "random:select_top_k=1",
        "vanilla",
    ]
    assert off["experts"]["distinct_after"] == off["experts"]["distinct_before"]
    for record in others[:2]:
        assert record["experts"]["distinct_after"] <= 6 < record["experts"]["distinct_before"]
        assert record["overhead"]["us_per_layer"] > 0


def test_bench_refuses_an_option_that_vllm_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelled option of vLLM is one line, before an engine starts."""
    assert main(["bench", "serve", "--preset", "tiny", "--engine-option", "max-num-sequences=3"]) == 2
    assert "has no engine option 'max_num_sequences'" in capsys.readouterr().err.splitlines()[-1]


def test_vanilla(tmp_path: Path) -> None:
    """Without the wrappers the engine does not re-route; afterward it does as before."""
    with engine(save_model(tmp_path), {"select_top_k": 1}, async_scheduling=False) as llm:
        expected = generate(llm, prompts())
        with vanilla(llm):
            assert generate(llm, prompts()) != expected
        assert generate(llm, prompts()) == expected


def test_evaluate(tmp_path: Path) -> None:
    """Where nothing can be moved every mark is that of off; a floor and factors get their own engine."""
    path, table = model_path(), scaled_table(tmp_path)
    alike = ["sere:select_top_k=8", "random:select_top_k=8", "topk:select_top_k=8"]
    moving = [
        "sere:select_top_k=1",
        "random:select_top_k=1",
        "topk:select_top_k=1",
        "sere:select_top_k=1,min_active=24,use_scale=true",
    ]
    plan = QuestionPlan(
        settings=parse_specs([*alike, *moving]),
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
    assert started == [{}, {"min_active": 24, "use_scale": True}]
    off, *others = record["cases"]
    assert [case["setting"] for case in others] == [*alike, *moving]
    assert off["tasks"]["all"]["right"] > 6
    assert off["experts"]["distinct_after"] == off["experts"]["distinct_before"]
    assert 4 < off["mean_rows"] <= 8
    for case in others[: len(alike)]:
        assert case["tasks"]["all"]["marks"] == off["tasks"]["all"]["marks"], case["setting"]
        assert case["experts"] == off["experts"], case["setting"]
        assert case["mean_rows"] == off["mean_rows"], case["setting"]
        assert "keeps all 8 slots of a token" in case["nothing_changed"], case["setting"]
    one, drawn, reduced, floored = (case["experts"] for case in others[len(alike) :])
    assert max(one["distinct_after"], drawn["distinct_after"], reduced["distinct_after"]) <= 8
    assert 23 < floored["distinct_after"] <= 24
    assert [case["nothing_changed"] for case in (off, *others[len(alike) :])] == [None] * (1 + len(moving))
    assert record["model"]["experts_implementation"] == "vllm"


def test_controls_take_the_place_of_the_engines_own_routing(tmp_path: Path) -> None:
    """A control decodes other text than SERE at the same S; behind it the engine is as before."""
    with engine(save_model(tmp_path), {"select_top_k": 1}) as llm:
        own = generate(llm, prompts())
        random, reduced = parse_specs(["random:select_top_k=1", "topk:select_top_k=1"])[1:]
        with routed(llm, random, seed=3):
            drawn = generate(llm, prompts())
            read = read_stats(llm, reset=True)
            assert all(layer.slots_rerouted > 0 for layer in read.layers)
        with routed(llm, random, seed=3):
            assert generate(llm, prompts()) == drawn
        with routed(llm, reduced):
            assert generate(llm, prompts()) not in (own, drawn)
        assert generate(llm, prompts()) == own != drawn

        state_of(llm).kernel = "SomeExperts"
        with (
            pytest.raises(UnsupportedEngine, match="random:select_top_k=1: the expert kernel SomeExperts"),
            routed(llm, random),
        ):
            pass
        with routed(llm, parse_specs([])[0]):
            generate(llm, prompts())


def test_evaluate_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sere eval --engine vllm`` starts engines with the checkpoint's dtype and leaves one file."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    out = tmp_path / "out" / "eval.json"
    argv = ["eval", "bundled", "--engine", "vllm", "--table", str(scaled_table(tmp_path)), "--out", str(out),
            "--batch-size", "4", "--per-task", "1", "--tasks", "addition", "sorting",
            "--setting", "sere:select_top_k=8,min_active=9,use_scale=true",
            "--setting", "random:select_top_k=8"]  # fmt: skip
    assert main(argv) == 0
    record = json.loads(out.read_text())
    assert list(out.parent.iterdir()) == [out]
    assert record["model"]["dtype"] == "bfloat16"
    labels = ["off", "sere:select_top_k=8,min_active=9,use_scale=true", "random:select_top_k=8"]
    assert [case["setting"] for case in record["cases"]] == labels
    assert len({case["tasks"]["all"]["marks"] for case in record["cases"]}) == 1
    told = capsys.readouterr().err
    assert "B=4 random:select_top_k=8: done" in told
    assert (
        "B=4 random:select_top_k=8: nothing was re-routed: select_top_k=8 keeps all 8 slots of a token"
        in told
    )


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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"settings": parse_specs(["topk:select_top_k=1"]), "compiled": True},
            "topk:select_top_k=1: .* in a compiled engine",
        ),
        (
            {"settings": parse_specs(["oea:select_top_k=2"])},
            "oea:select_top_k=2: oea needs the router's scores",
        ),
        (
            {"settings": parse_specs(["sere:select_top_k=1"])[1:]},
            "first setting must be 'off'.*; got sere:select_top_k=1",
        ),
        ({"batch_sizes": []}, "expected batch sizes of at least 1"),
        ({"steps": 1}, "at least 2 steps"),
    ],
)
def test_refused_plans(options: dict[str, object], text: str) -> None:
    """What no engine can be timed with is refused before one starts."""
    with pytest.raises(InputError, match=text):
        InProcessPlan(**{"settings": parse_specs(["sere:select_top_k=1"]), "batch_sizes": [8]} | options)  # type: ignore[arg-type]
