"""What to evaluate with lm-eval, and lm-eval's tasks by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sere.errors import ConfigError, DataError, InputError, MissingDependency, did_you_mean, how_to_install
from sere.eval.harness.scored import PREFILL, check_kinds
from sere.policies.spec import PolicySpec, check_off_first
from sere.provenance import installed_version

OLDEST = "0.4.13"


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessPlan:
    """Tasks of lm-eval under all settings at all batch sizes.

    Attributes:
        tasks: Names of tasks, groups or tags, or patterns such as ``mmlu_*``.
        settings: The ways to route; the first is ``off``, the baseline.
        batch_sizes: Rows of a decode step.
        engine: ``"transformers"`` or ``"vllm"``.
        phases: Where log-likelihoods are taken; see `sere.eval.harness.scored`.
        folders: Further folders with tasks.
        num_fewshot: Examples before each question; None for the task's own number.
        limit: Questions per task; None for all.
        seed: Seed of lm-eval's examples and of random rules.
        chat_template: Whether lm-eval applies the tokenizer's chat template.
    """

    tasks: Sequence[str]
    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    engine: str = "transformers"
    phases: str = PREFILL
    folders: Sequence[str] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    seed: int = 0
    chat_template: bool = False

    def __post_init__(self) -> None:
        check_off_first(self.settings)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"batch_sizes: expected at least one, each at least 1, got {self.batch_sizes}")

    def describe(self) -> dict[str, Any]:
        """Return what a record says beside settings and batch sizes, with lm-eval's version; JSON-ready."""
        return {
            "lm_eval": installed_version("lm_eval"),
            "tasks": list(self.tasks),
            "engine": self.engine,
            "phases": self.phases,
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "seed": self.seed,
            "chat_template": self.chat_template,
            "intervals": {
                "share": "Wilson",
                "difference": "Newcombe 1998, paired (method 10); Student's t where a question is not right "
                "or wrong",
            },
        }


@dataclass(frozen=True, slots=True)
class FoundTasks:
    """Tasks that lm-eval knows.

    Attributes:
        manager: lm-eval's ``TaskManager``.
        names: What to hand to lm-eval: names of tasks, groups and tags.
        kinds: By task, lm-eval's ``output_type``.
    """

    manager: Any
    names: Sequence[str]
    kinds: Mapping[str, str]


def check_version() -> None:
    """Refuse an lm-eval that is missing or too old.

    Raises:
        MissingDependency: The text says how to install it.
    """
    found = installed_version("lm_eval")
    if found is None:
        raise MissingDependency(f"lm-eval is not installed; {how_to_install('lm-eval')}")
    if tuple(map(int, found.split(".")[:3])) < tuple(map(int, OLDEST.split("."))):
        raise MissingDependency(f"lm-eval {found}: expected {OLDEST} or newer; {how_to_install('lm-eval')}")


def find_tasks(plan: HarnessPlan) -> FoundTasks:
    """Look up the plan's tasks and load their data, and refuse those on which nothing could be seen.

    Raises:
        MissingDependency: lm-eval is missing or too old.
        ConfigError: A task is unknown, or no setting could show a loss on it.
        DataError: lm-eval could not load a task; the text has its own error.
    """
    check_version()
    from lm_eval.tasks import TaskManager

    folders = list(plan.folders) or None
    manager = TaskManager(include_path=folders, include_defaults=False)
    # Its own tasks are some ten thousand files, which take a while to read.
    if any(not manager.match_tasks([name]) for name in plan.tasks):
        manager = TaskManager(include_path=folders)
    names: dict[str, None] = {}
    for name in plan.tasks:
        found = manager.match_tasks([name])
        if not found:
            raise ConfigError(f"--tasks: lm-eval has no task {name!r}{did_you_mean(name, manager.all_tasks)}")
        names |= dict.fromkeys(found)
    try:
        loaded = manager.load(list(names))["tasks"]
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"--tasks: lm-eval could not load {' '.join(names)}: {words}") from error
    kinds = {name: str(task.get_config("output_type")) for name, task in loaded.items()}
    changes = any(setting.policy_class.changes_routing for setting in plan.settings)
    check_kinds(kinds, phases=plan.phases, changes=changes)
    return FoundTasks(manager, list(names), kinds)
