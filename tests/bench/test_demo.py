"""The demonstration's record and its picture, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.bench import demo
from sere.bench.demo import Round, demonstrate
from sere.bench.picture import draw_demo
from sere.bench.target import random_table
from sere.engines.transformers import apply_setting
from sere.eval.decoding.greedy import StopRule, decode, stop_rule
from sere.eval.questions import encode_prompts, held_out
from sere.policies.spec import parse_specs
from sere.structure import find_experts
from sere.table import Tier


@pytest.fixture(scope="module")
def record(model: Any, tokenizer: Any) -> dict[str, Any]:
    return demonstrate(
        model,
        tokenizer,
        random_table(model),
        settings=parse_specs(["sere:active_experts=0", "topk:select_top_k=4"]),
        rounds=[Round(1, 2), Round(4, 8)],
        questions=held_out(2, tasks=["addition", "sorting", "reversal", "shift"]),
        max_new_tokens=30,
    )


def test_each_batch_size_has_off_first_and_its_ratio(record: dict[str, Any], model: Any) -> None:
    """One case a batch size and setting; off is its own base; SERE reads fewer experts; no hook is left."""
    cases = record["cases"]
    assert [(case["batch_size"], case["setting"], case["n"]) for case in cases] == [
        (B, name, n)
        for B, n in ((1, 2), (4, 8))
        for name in ("off", "sere:active_experts=0", "topk:select_top_k=4")
    ]
    for off, sere, same in (cases[:3], cases[3:]):
        assert off["speedup"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
        assert "difference" not in off
        assert sere["distinct_after"] < off["distinct_after"]
        assert same["distinct_after"] == pytest.approx(
            off["distinct_after"], rel=0.2
        )  # off is counted in some turns only
        assert same["right"] == off["right"]  # top-k reduction to K slots changes nothing
        assert min(case["tpot_ms"]["p20"] for case in (off, sere, same)) > 0
    assert all(not layer.module._forward_pre_hooks for layer in find_experts(model))


def test_the_controls_read_as_many_experts_as_the_tables_tier(model: Any, tokenizer: Any) -> None:
    """``random`` and ``drop`` have the table, whose tier is what no settings mean."""
    table = random_table(model)
    found = demonstrate(
        model,
        tokenizer,
        table.with_tiers({"balanced": Tier("balanced", 5)}),
        settings=parse_specs(["sere", "random", "drop"]),
        rounds=[Round(4, 4)],
        questions=held_out(2, tasks=["addition", "sorting"]),
        max_new_tokens=12,
    )
    experts = {case["setting"]: case["distinct_after"] for case in found["cases"]}
    assert experts["off"] > 5 + 1
    assert all(5 <= experts[name] < 6 for name in ("sere", "random", "drop"))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The tokens of every run's answers, in the order of the settings."""
    kept: list[list[list[int]]] = []

    def keep(_tokenizer: Any, asked: Any, tokens: list[list[int]]) -> list[bool]:
        kept.append(tokens)
        return [True] * len(asked)

    monkeypatch.setattr(demo, "mark", keep)
    return kept


QUESTIONS = held_out(2, tasks=["addition", "sorting"])


def test_runs_that_take_turns_answer_as_a_run_alone(
    model: Any, tokenizer: Any, answers: list[list[list[int]]]
) -> None:
    """The unmodified run, cut into slices between other settings' slices, gives the same tokens as alone."""
    settings = parse_specs(["random:select_top_k=1", "sere:active_experts=0"])
    demonstrate(
        model, tokenizer, random_table(model), settings=settings, rounds=[Round(2, 4)], questions=QUESTIONS,
        max_new_tokens=20,
    )  # fmt: skip
    prompts = encode_prompts(tokenizer, [question.prompt for question in QUESTIONS])
    alone = decode(model, prompts, batch_size=2, rule=StopRule(20))
    assert answers[0] == alone.tokens
    assert answers[1] != alone.tokens


def test_the_controls_draws_continue_from_turn_to_turn(
    model: Any, tokenizer: Any, answers: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random control, cut into slices, answers as alone: no turn repeats another's draws."""
    monkeypatch.setattr(demo, "SLICE", 3)
    settings, table = parse_specs(["random:select_top_k=1"]), random_table(model)
    demonstrate(
        model, tokenizer, table, settings=settings, rounds=[Round(4, 4)], questions=QUESTIONS,
        max_new_tokens=20,
    )  # fmt: skip
    prompts = encode_prompts(tokenizer, [question.prompt for question in QUESTIONS])
    with apply_setting(model, settings[1], table):
        alone = decode(model, prompts, batch_size=4, rule=stop_rule(model, tokenizer, 20))
    assert answers[1] == alone.tokens
    assert answers[1] != answers[0]


def test_timed_turns_leave_steps_alone_as_in_use(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that surely change nothing are routed in the turns that count, and in no turn that is timed."""
    seen: list[tuple[str, bool]] = []

    def applied(*given: Any, counts_all: bool, **named: Any) -> Any:
        seen.append((given[1].name, counts_all))
        return apply_setting(*given, counts_all=counts_all, **named)

    monkeypatch.setattr(demo, "apply_setting", applied)
    monkeypatch.setattr(demo, "SLICE", 2)
    demonstrate(
        model, tokenizer, random_table(model), settings=parse_specs(["sere:active_experts=6"]),
        rounds=[Round(1, 1)], questions=QUESTIONS, max_new_tokens=20,
    )  # fmt: skip
    sere = [counted for name, counted in seen if name == "sere"]
    assert sere == [turn % demo.COUNT_EVERY == 0 for turn in range(len(sere))]
    assert {counted for name, counted in seen if name == "off"} == {True}
    assert len(sere) > demo.COUNT_EVERY


def test_the_picture_is_a_png(record: dict[str, Any], tmp_path: Path) -> None:
    """The picture is a PNG of the wanted name, with nothing else beside it."""
    path = tmp_path / "new" / "demo.png"
    draw_demo(record, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]
