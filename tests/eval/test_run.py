"""The frame of an evaluation: an interrupted run continues, whatever is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.bench.target import random_table
from sere.eval.plan import PromptPlan, QuestionPlan
from sere.eval.questions import held_out
from sere.eval.run import evaluate
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
    assert _without_times(record) == _without_times(once)


def _without_times(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: case[name] for name in case if name != "step_ms_median"} for case in record["cases"]]
