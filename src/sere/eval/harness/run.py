"""Run lm-eval under every setting at every batch size, off first, and compare question by question."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from sere.errors import name_some
from sere.eval.finished import FinishedCases, case_name
from sere.eval.harness.compare import compare_tasks, task_results
from sere.eval.harness.plan import FoundTasks, HarnessPlan
from sere.policies.spec import PolicySpec

Seen = Callable[[], dict[str, Any]]
Models = Callable[[Sequence[PolicySpec], int], Generator[tuple[PolicySpec, Any, Seen]]]
"""Given settings and a batch size: yields each setting (in any order), the model of lm-eval that runs it, and
what to call after its requests to read what re-routing did, by kind of request."""


def evaluate_tasks(
    plan: HarnessPlan,
    found: FoundTasks,
    models: Models,
    header: Mapping[str, Any],
    *,
    weights: str = "",
    checkpoint: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run all cases and return the record.

    All cases have lm-eval's seeds set to the plan's, so their examples and questions are the same.

    Args:
        plan: What to evaluate.
        found: The plan's tasks.
        models: Makes the models.
        header: What the record says before its cases, from `sere.eval.record.make_header`.
        weights: A digest that differs between models of equal shape; for ``checkpoint``.
        checkpoint: A file that keeps finished cases, so that an interrupted run can continue; deleted at the
            end.

    Returns:
        A JSON-ready record: the header, and one entry of ``cases`` per batch size and setting: ``requests``,
        what re-routing did by kind of request, and ``tasks``, as `task_results` and `compare_tasks` say.
    """
    kept = FinishedCases.of_run(header, checkpoint, weights=weights)
    with kept.going_on():
        for batch_size in plan.batch_sizes:
            missing = [one for one in plan.settings if kept.get(case_name(one, batch_size)) is None]
            if not missing:
                continue
            with closing(models(missing, batch_size)) as running:
                for setting, model, seen in running:
                    tasks = _tasks(plan, found, model)
                    case = {"setting": setting.label, "batch_size": batch_size, "requests": seen()}
                    kept.put(case_name(setting, batch_size), case | {"tasks": tasks})
    cases = [kept.cases[case_name(one, size)] for size in plan.batch_sizes for one in plan.settings]
    kept.delete()
    return dict(header) | {"format": "sere-lm-eval-1", "cases": compare_tasks(cases)}


def _tasks(plan: HarnessPlan, found: FoundTasks, model: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    with _without_git():
        results = simple_evaluate(
            model=model,
            tasks=list(found.names),
            task_manager=found.manager,
            num_fewshot=plan.num_fewshot,
            limit=plan.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=plan.chat_template,
            random_seed=plan.seed,
            numpy_random_seed=plan.seed,
            torch_random_seed=plan.seed,
            fewshot_random_seed=plan.seed,
        )
    return task_results(results, found.kinds)


@contextmanager
def _without_git() -> Iterator[None]:
    """Keep lm-eval from asking git for the current folder's commit: outside a repository, git complains.

    No record of ours holds that commit; the header has sere's own.
    """
    from lm_eval import evaluator

    asked = getattr(evaluator, "get_git_commit_hash", None)
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asked


def why_nothing(record: Mapping[str, Any]) -> str | None:
    """Return each reason why no case of a record re-routed anything; None if one did or none was meant to."""
    reasons = [
        seen["nothing_changed"]
        for case in record["cases"]
        if case["setting"] != "off"
        for seen in case["requests"].values()
    ]
    if not reasons or None in reasons:
        return None
    return name_some(dict.fromkeys(map(str, reasons)), separator="; ")
