"""One worker process: the moments in its life at which re-routing has something to do.

Nothing here changes a class: all is set on the one worker and the one model runner of an engine that asked
for re-routing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.options import Options
from sere.integrations.vllm.start import features, tables, versions
from sere.integrations.vllm.worker import change, metrics_port, router_hook
from sere.integrations.vllm.worker.state import Session
from sere.integrations.vllm.worker.steps import Steps


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
    worker.sere_configure = functools.partial(change.change, session)
    _around_loading(worker, session)
    _after_warm_up(worker, session)
    _before_shutdown(worker, session.guard.last_look)


def _read(session: Session, reset: bool = False) -> dict[str, Any]:
    return engine_stats.answer(session, reset=reset)


def _around_loading(worker: Any, session: Session) -> None:
    """Watch the model being built; afterward prepare the layers and watch the model runner's steps."""
    load_model = worker.load_model

    @functools.wraps(load_model)
    def loading(*args: Any, **kwargs: Any) -> Any:
        with router_hook.building(session.add):
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
            close = metrics_port.serve(session, session.options.metrics_host, session.options.metrics_port)
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
