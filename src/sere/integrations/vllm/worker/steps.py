"""The steps of one model runner: each is announced to the layers before the model runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sere.config import MOST_INT
from sere.integrations.vllm.tiers import OFF, PROTECTED
from sere.integrations.vllm.worker.batches import watch_batches
from sere.integrations.vllm.worker.reporter import Reporter
from sere.integrations.vllm.worker.request_book import RequestBook, StepRows
from sere.integrations.vllm.worker.rules import mixed_rows
from sere.integrations.vllm.worker.state import WorkerState


class Steps:
    """Announces each step of a model runner to the layers before the model runs.

    Args:
        runner: vLLM's model runner, V1 or V2.
        state: The worker's state.

    Attributes:
        reporter: Reads what the steps counted, between two of them.
        mixed_rows: From how many rows that keep their experts on a step is left alone.
        top_k: K; the largest of any layer. Without a layer no S reaches it.
    """

    def __init__(self, runner: Any, state: WorkerState) -> None:
        self.runner, self.state = runner, state
        self.book = RequestBook(state.rules.allowed)
        self.reporter = Reporter(state)
        self.mixed_rows = mixed_rows(state.shapes)
        self.top_k = max((shape.top_k for shape in state.shapes), default=MOST_INT)

    def watch(self) -> None:
        """Set the wrappers on the runner object.

        Raises:
            UnsupportedEngine: It is a model runner of another kind.
        """
        runner = self.runner
        watch_batches(runner, lambda *batch: self._announce(*batch), self._unknown)
        self._wrap("_dummy_run", self._before_dummy)
        runner.execute_model = self._around_step(runner.execute_model)

    def _wrap(self, name: str, before: Callable[..., None]) -> None:
        """Call ``before`` with the same arguments ahead of a method of the runner."""
        method = getattr(self.runner, name)

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(*args, **kwargs)
            return method(*args, **kwargs)

        setattr(self.runner, name, wrapped)

    def _around_step(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        """Take in what is scheduled ahead of a step; while it runs, nobody reads what it counts."""

        @functools.wraps(execute)
        def executed(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dummy_run", False):
                return execute(scheduler_output, *args, **kwargs)
            with self.state.lock:
                self.book.update(scheduler_output)
                if self.state.enabled:
                    self.state.guard.step()
                result = execute(scheduler_output, *args, **kwargs)
                self.reporter.after_step()
            return result

        return executed

    def _before_dummy(self, *_: Any, **__: Any) -> None:
        assert self.state.budgets is not None
        self.state.budgets.exact(dummy=True)

    def _unknown(self) -> None:
        """Leave a step alone whose rows nobody knows."""
        assert self.state.budgets is not None
        self.state.budgets.exact()
        self.state.counts.unknown += 1

    def _announce(self, scheduler_output: Any, names: list[str], counts: Any) -> None:
        state = self.state
        assert state.budgets is not None
        assert state.limits is not None
        if not state.enabled:
            state.budgets.exact()
            state.counts.disabled += 1
            return
        if state.other_experts and self.book.reads_images(scheduler_output):
            # The experts for text are given the rows between the images: which ones is not known here.
            self._unknown()
            return
        rows = self.book.budgets(scheduler_output, names, counts, all_phases=state.config.phases == "all")
        if state.count_only:
            rows = rows.keeping_all()
        least = rows.least_budget(state.limits.least_select_top_k(rows.tiers)) if rows.tiers else PROTECTED
        if rows.tiers and not state.count_only and self._leaves_alone(rows, least):
            state.budgets.exact()
            return
        if state.budgets.announce(rows.budgets):
            state.limits.choose(rows.tiers, all_slots=self._all_slots(len(rows.budgets)))
            state.counts.add_rerouted(least, filter(None, rows.tiers - {OFF}))
        elif rows.decoding:
            state.counts.protected += 1
        else:
            state.counts.prompts += 1

    def _all_slots(self, rows: int) -> bool:
        """Whether the announced step, of so many rows, computes the slots that are given up, too."""
        state = self.state
        assert state.budgets is not None
        if state.flat.why_not is None:
            return state.flat.compute_all_slots(rows, state.budgets.largest)
        return rows < state.skips_from

    def _leaves_alone(self, rows: StepRows, least: int) -> bool:
        """Whether a step is left alone, which is counted then.

        Each row keeps all its experts; so many rows do, as a rule those of prompts, that a change would save
        nothing; or too few rows may change for any slot to be re-routed.

        Args:
            rows: Its rows.
            least: An S that each of them has at least in each layer.
        """
        state = self.state
        assert state.limits is not None
        # Another rule is there to be measured.
        own = state.policy is state.sere
        if own and least >= self.top_k:
            state.counts.protected += 1
        elif rows.protected >= self.mixed_rows:
            state.counts.mixed += 1
        elif own and rows.open <= state.limits.exact_rows(rows.tiers):
            # Rows that keep their experts take none of M.
            state.counts.add_few_rows(rows.open)
        else:
            return False
        return True
