"""``sere bench serve`` and ``sere eval --engine vllm`` on small engines: what they count, not how fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.vllm.in_process import InProcessPlan, bench_in_process
from sere.bench.vllm.replay import record_routing, replayed, vanilla
from sere.cli import main
from sere.cli.bench.serve_tables import render
from sere.errors import InputError
from sere.integrations.vllm import read_stats
from sere.policies.spec import parse_specs
from tests.support.vllm.engines import engine, generate, prompts

RESTS = ("1,active_experts=0", "4", "1,active_experts=10,targets=active")
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bench(tmp_path: Path, compiled: bool) -> None:
    """Off, S = 1 and its replay side by side; other targets have an engine and an off of their own."""
    path = save_model(tmp_path)
    started: list[dict[str, Any]] = []

    @contextmanager
    def start(settings: Mapping[str, Any]) -> Iterator[Any]:
        started.append(dict(settings))
        options = {"enforce_eager": not compiled, "async_scheduling": False}
        with engine(path, {"select_top_k": 1} | dict(settings), **options) as llm:
            yield llm

    plan = InProcessPlan(
        settings=parse_specs([f"sere:select_top_k={rest}" for rest in RESTS]),
        batch_sizes=[6], prompt=8, steps=6, rounds=1, compiled=compiled, engine_options={"block_size": 32},
    )  # fmt: skip
    records = list(bench_in_process(start, {"model": "m"}, plan))
    assert started == [{}, {"targets": "active"}]
    assert [(r["setting"], r["config"]["start"]) for r in records] == [
        (name, options)
        for options, labels in (
            ({}, ["sere:select_top_k=1,active_experts=0", "sere:select_top_k=4"]),
            ({"targets": "active"}, [f"sere:select_top_k={RESTS[2]}"]),
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
        settings=parse_specs(["topk:select_top_k=1", "random:select_top_k=1,active_experts=0"]),
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
        "random:select_top_k=1,active_experts=0",
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"settings": parse_specs(["topk:select_top_k=1"]), "compiled": True},
            "topk:select_top_k=1: .* in a compiled engine",
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
