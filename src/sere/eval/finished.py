"""The finished cases of an evaluation, kept in a file so that an interrupted run can continue."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sere.errors import name_some
from sere.files import write_json
from sere.interrupts import going_on
from sere.resume import differences

if TYPE_CHECKING:
    from sere.eval.plan import EvalPlan
    from sere.policies.spec import PolicySpec

logger = logging.getLogger("sere")

_IN_WORDS = {
    "weights": "the model's weights differ",
    "model.digest": "the model's shape differs",
    "table.fingerprint": "the tables differ",
    "plan.questions_digest": "the questions differ",
    "plan.prompts_digest": "the prompts differ",
    "plan.passages_digest": "the English passages differ",
}


class FinishedCases:
    """Finished cases in a file, valid only for the run that wrote them.

    A file of another run (other model, table or plan) or a damaged one counts as empty and is
    overwritten: its cases cannot be compared with this run's. A warning says how the runs differ.

    Args:
        path: The file; None keeps nothing on disk.
        key: What identifies the run; JSON-ready.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.key = json.loads(json.dumps(key))
        self.cases: dict[str, dict[str, Any]] = self._read()

    @classmethod
    def of_run(cls, header: Mapping[str, Any], path: str | os.PathLike[str] | None, *, weights: str) -> Self:
        """Return the finished cases of a run, including those of an interrupted one.

        Args:
            header: What ``sere.eval.record.make_header`` returned.
            path: The file; None keeps nothing on disk.
            weights: A digest that differs between models of equal shape.
        """
        key = {name: header[name] for name in ("model", "table", "plan")}
        return cls(path, key | {"weights": weights, "versions": header["provenance"]["versions"]})

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a finished case, or None."""
        return self.cases.get(name)

    def put(self, name: str, case: dict[str, Any]) -> None:
        """Keep a finished case; the file holds it before this returns."""
        self.cases[name] = case
        if self.path is not None:
            write_json(self.path, {"key": self.key, "cases": self.cases})

    def delete(self) -> None:
        """Remove the file: the run is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def missing(self, plan: EvalPlan, settings: Sequence[PolicySpec]) -> list[tuple[PolicySpec, int]]:
        """Return the cases of some of the plan's settings that are still to be measured, by batch size."""
        cases = [(setting, batch_size) for batch_size in plan.batch_sizes for setting in settings]
        return [case for case in cases if self.get(case_name(*case)) is None]

    def in_order(self, plan: EvalPlan) -> list[dict[str, Any]]:
        """Return all cases of a run that is complete, by batch size."""
        return [
            self.cases[case_name(setting, batch_size)]
            for batch_size in plan.batch_sizes
            for setting in plan.settings
        ]

    def _read(self) -> dict[str, dict[str, Any]]:
        if self.path is None:
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            cases, key = dict(found["cases"]), dict(found["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if different := differences(key, self.key, _IN_WORDS):
            logger.warning(
                "sere: starting over: %d finished cases in %s belong to another run: %s",
                len(cases), self.path, name_some(different, separator="; "),
            )  # fmt: skip
            return {}
        return cases

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Add to any error that ends the block how many cases the same command will find finished."""

        def kept() -> str | None:
            if self.path is None or not self.cases:
                return None
            done = f"finished cases: {len(self.cases)} (kept in {self.path})"
            return f"{done}; the same command continues after them"

        with going_on(kept):
            yield


def case_name(setting: PolicySpec, batch_size: int) -> str:
    """Return what progress and the file of finished cases call a case."""
    return f"B={batch_size} {setting.label}"
