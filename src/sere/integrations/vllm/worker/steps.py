"""The steps of one model runner: each is announced to the layers before the model runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np

from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker.request_book import RequestBook
from sere.integrations.vllm.worker.state import Session, logger


class Steps:
    """Announces each step of a model runner to the layers before the model runs.

    Args:
        runner: vLLM's model runner, V1 or V2.
        session: The worker's session.
    """

    def __init__(self, runner: Any, session: Session) -> None:
        self.runner, self.session = runner, session
        self.book = RequestBook()
        self._logged = monotonic()

    def watch(self) -> None:
        """Set the wrappers on the runner object.

        Raises:
            UnsupportedEngine: It is a model runner of another kind.
        """
        runner = self.runner
        if versions.prepares_in_place(runner):
            self._wrap("_prepare_inputs", self._before_prepare)
        else:
            prepare = runner.prepare_inputs
            runner.prepare_inputs = functools.wraps(prepare)(self._around_prepare(prepare))
        self._wrap("_dummy_run", self._before_dummy)
        self._wrap("execute_model", self._before_step)

    def _wrap(self, name: str, before: Callable[..., None]) -> None:
        """Call ``before`` with the same arguments ahead of a method of the runner."""
        method = getattr(self.runner, name)

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(*args, **kwargs)
            return method(*args, **kwargs)

        setattr(self.runner, name, wrapped)

    def _before_step(self, scheduler_output: Any, *_: Any, **kwargs: Any) -> None:
        if not kwargs.get("dummy_run", False):
            self.book.update(scheduler_output)
            self.session.guard.step()
        self._log()

    def _before_dummy(self, *_: Any, **__: Any) -> None:
        assert self.session.signal is not None
        self.session.signal.exact()

    def _before_prepare(self, scheduler_output: Any, counts: Any, *_: Any, **__: Any) -> None:
        """V1: requests have taken their places in the batch by now."""
        self._announce(scheduler_output, self.runner.input_batch.req_ids, np.asarray(counts))

    def _around_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """V2: the batch that comes back says who has which rows."""

        def prepared(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            batch = prepare(scheduler_output, *args, **kwargs)
            counts = np.asarray(batch.num_scheduled_tokens)
            if int(counts.sum()) == int(batch.num_tokens):
                self._announce(scheduler_output, batch.req_ids, counts)
            else:
                # The device drops some drafted tokens by itself: whose rows are where is not known here.
                self._before_dummy()
                self.session.counts.unknown += 1
            return batch

        return prepared

    def _announce(self, scheduler_output: Any, names: list[str], counts: Any) -> None:
        session = self.session
        assert session.signal is not None
        names = names[: len(counts)]
        if not session.enabled:
            session.signal.exact()
            session.counts.disabled += 1
            return
        config = session.config
        rows = self.book.budgets(
            scheduler_output, names, counts, config.select_top_k, all_phases=config.phases == "all"
        )
        if session.signal.announce(rows.budgets):
            session.counts.add_rerouted(int(rows.budgets.min()))
        elif rows.decoding:
            session.counts.protected += 1
        else:
            session.counts.prompts += 1

    def _log(self) -> None:
        session, every = self.session, self.session.options.log_seconds
        if not every or session.vllm_config.parallel_config.rank != 0:
            return
        now = monotonic()
        if now - self._logged >= every:
            self._logged = now
            session.guard.look()
            logger.info(
                "sere: %s", engine_stats.log_line(engine_stats.merged([engine_stats.answer(session)]))
            )
