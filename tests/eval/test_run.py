"""The frame of an evaluation: an interrupted run continues, whatever is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sere.bench.target import random_table
from sere.eval.plan import PromptPlan, QuestionPlan
from sere.eval.questions import held_out
from sere.eval.run import evaluate
from sere.policies.base import Policy
from sere.policies.primary_set import PrimarySetBaseline
from sere.policies.sere import Sere
from sere.policies.spec import parse_specs
from tests.support.progress import Interrupting

ON = "sere:select_top_k=1"
COMMON: dict[str, Any] = {"settings": parse_specs([ON]), "batch_sizes": [2], "max_new_tokens": 6}
QUESTIONS = QuestionPlan(questions=held_out(2, tasks=["addition", "sorting"]), **COMMON)
PROMPTS = PromptPlan(prompts=["add 4821", "the mill stood by", "sort 7 3 9"], **COMMON)


@pytest.mark.parametrize(
    ("plan", "before"),
    [pytest.param(QUESTIONS, [], id="questions"), pytest.param(PROMPTS, ["continuations"], id="prompts")],
)
def test_an_interrupted_run_continues_after_its_finished_cases(
    model: Any, tokenizer: Any, tmp_path: Path, plan: QuestionPlan | PromptPlan, before: list[str]
) -> None:
    """Stopped in the second case, the same plan measures only what is missing, with equal results."""
    path, table = tmp_path / "partial.json", random_table(model)
    progress = Interrupting(at=len(before) + 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, plan, table=table, checkpoint=path, progress=progress)
    record = evaluate(model, tokenizer, plan, table=table, checkpoint=path, progress=progress)
    assert progress.begun == [*before, "B=2 off", f"B=2 {ON}", f"B=2 {ON}"]
    assert not path.exists()
    once = evaluate(model, tokenizer, plan, table=table)
    assert record["cases"] == once["cases"]


@pytest.mark.parametrize("plan", [QUESTIONS, PROMPTS], ids=["questions", "prompts"])
@pytest.mark.parametrize("setting", ["sere", "drop"])
def test_what_cannot_reroute_is_off_without_a_run(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, plan: QuestionPlan | PromptPlan, setting: str
) -> None:
    """The defaults at one row have the result that they would have if they ran, and a note; others run."""
    few = f"{setting}:active_experts=1"
    plan = replace(plan, settings=parse_specs([setting, few]), batch_sizes=[1])
    progress = Interrupting(at=100)
    off, same, other = evaluate(model, tokenizer, plan, table=random_table(model), progress=progress)["cases"]
    assert progress.begun[-2:] == ["B=1 off", f"B=1 {few}"]
    assert "the result is that of off, without a run of its own" in same["nothing_changed"]
    assert other["experts"]["distinct_after"] < off["experts"]["distinct_after"]
    monkeypatch.setattr(Policy, "never_reroutes", lambda *_: False)
    for rule in (Sere, PrimarySetBaseline):
        monkeypatch.setattr(rule, "never_reroutes", lambda *_: False)
    ran = evaluate(model, tokenizer, plan, table=random_table(model))["cases"][1]
    assert ran | {"nothing_changed": None} == same | {"nothing_changed": None}
