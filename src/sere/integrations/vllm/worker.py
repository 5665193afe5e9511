"""One worker process: the moments in its life at which re-routing has something to do.

Nothing here changes a class: all is set on the one worker and the one model runner of an engine that asked
for re-routing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import torch

from sere.integrations.vllm import features, live, port, seam, stats, tables, versions
from sere.integrations.vllm.options import Options
from sere.integrations.vllm.requests import RequestBook
from sere.integrations.vllm.session import Session, logger


def equip(worker: Any, values: object) -> None:
    """Give a worker that has just been made what it needs to re-route.

    Args:
        worker: vLLM's worker.
        values: What stands under ``additional_config["sere"]``.

    Raises:
        SereError: Settings, table, version or features are refused; each text says what to do.
    """
    options = Options.from_mapping(values)
    config = worker.vllm_config
    versions.check_version(
        versions.engine_version(),
        device_type=config.device_config.device_type,
        allow_untested=options.allow_untested,
    )
    features.check_features(config, allow_untested=options.allow_untested)
    path = tables.find_table(options.reroute.table, config.model_config)
    table = tables.load_table(path, config.model_config.hf_text_config)
    session = Session(options, config, table)
    worker.sere_session = session
    worker.sere_stats = functools.partial(_read, session)
    worker.sere_configure = functools.partial(live.change, session)
    _around_loading(worker, session)
    _after_warm_up(worker, session)
    _before_shutdown(worker, session.guard.last_look)


def _read(session: Session, reset: bool = False) -> dict[str, Any]:
    return stats.answer(session, reset=reset)


def _around_loading(worker: Any, session: Session) -> None:
    """Watch the model being built; afterwards prepare the layers and watch the model runner's steps."""
    load_model = worker.load_model

    @functools.wraps(load_model)
    def loading(*args: Any, **kwargs: Any) -> Any:
        with seam.building(session.add):
            result = load_model(*args, **kwargs)
        # Not the worker's: before 0.23 a CPU's has none.
        session.prepare(torch.device(worker.model_runner.device), _most_rows(worker.vllm_config))
        session.steps = Steps(worker.model_runner, session)
        session.steps.watch()
        if session.speaks:
            session.log_start()
        return result

    worker.load_model = loading


def _after_warm_up(worker: Any, session: Session) -> None:
    """Forget what warm-up steps counted; only then let others read, for no graph is being captured now."""
    warm_up = worker.compile_or_warm_up_model

    @functools.wraps(warm_up)
    def warming(*args: Any, **kwargs: Any) -> Any:
        result = warm_up(*args, **kwargs)
        session.reset_counters()
        session.guard.restart()
        if worker.rank == 0 and session.options.metrics_port is not None:
            close = port.serve(session, session.options.metrics_host, session.options.metrics_port)
            _before_shutdown(worker, close)
        return result

    worker.compile_or_warm_up_model = warming


def _before_shutdown(worker: Any, act: Callable[[], None]) -> None:
    shutdown = worker.shutdown

    @functools.wraps(shutdown)
    def shutting(*args: Any, **kwargs: Any) -> Any:
        act()
        return shutdown(*args, **kwargs)

    worker.shutdown = shutting


def _most_rows(vllm_config: Any) -> int:
    """The most rows that a step can have, padding for graphs included."""
    graphs = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return int(max(vllm_config.scheduler_config.max_num_batched_tokens, graphs))


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
            logger.info("sere: %s", stats.log_line(stats.merged([stats.answer(session)])))
