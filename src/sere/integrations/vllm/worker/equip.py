"""One worker process: the moments in its life at which re-routing has something to do.

Nothing here changes a class: all is set on the one worker and the one model runner of an engine that asked
for re-routing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sere.integrations.vllm.methods import CONFIGURE, EXPERTS, STATS
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start import features, tables, versions
from sere.integrations.vllm.worker.answers import answering
from sere.integrations.vllm.worker.change import Changes
from sere.integrations.vllm.worker.compile_key import keep_settings_out
from sere.integrations.vllm.worker.expert_counts import report_experts
from sere.integrations.vllm.worker.facts import rest_bytes
from sere.integrations.vllm.worker.metrics_port import MetricsPort
from sere.integrations.vllm.worker.router_hook import report_layers
from sere.integrations.vllm.worker.start_log import log_measured, log_start
from sere.integrations.vllm.worker.state import WorkerState
from sere.integrations.vllm.worker.steps import Steps
from sere.integrations.vllm.worker.weights import watch_reloading, without_table


def equip(worker: Any, values: object) -> None:
    """Give a worker that has just been made what it needs to re-route.

    Its state becomes ``worker.sere_state``, and what watches its steps ``worker.sere_steps`` once the model
    is loaded.

    Args:
        worker: vLLM's worker.
        values: What ``additional_config["sere"]`` holds.

    Raises:
        SereError: Settings, table, version or features are refused; each text says what to do.
    """
    plugin_config = PluginConfig.from_mapping(values)
    config = worker.vllm_config
    versions.check_version(
        versions.engine_version(),
        device_type=config.device_config.device_type,
        allow_untested=plugin_config.allow_untested,
    )
    features.check_features(config, allow_untested=plugin_config.allow_untested)
    path = tables.find_table(plugin_config.reroute.table, config.model_config)
    table = tables.load_table(path, config.model_config)
    tables.check_same(path, table, plugin_config.table_digest)
    state = WorkerState(plugin_config, config, table)
    worker.sere_state = state
    for name, method in methods_of(state).items():
        setattr(worker, name, method)
    port = _metrics_port(worker, state)
    keep_settings_out(config)
    _around_loading(worker, state, path)
    watch_reloading(worker, path, speaks=state.speaks)
    _around_warm_up(worker, state, port)
    _before_shutdown(worker, functools.partial(_say_last, worker, state))


def methods_of(state: WorkerState) -> dict[str, Callable[..., dict[str, Any]]]:
    """Return by name what ``collective_rpc`` may call on a worker."""
    return {
        STATS: answering(state, "reading the statistics", state.read),
        EXPERTS: answering(state, "reading the counts of experts", functools.partial(report_experts, state)),
        CONFIGURE: answering(state, "changing settings", Changes(state)),
    }


def _around_loading(worker: Any, state: WorkerState, table: Path) -> None:
    """Watch the model being built; afterward prepare the layers and watch the model runner's steps."""
    load_model = worker.load_model

    @functools.wraps(load_model)
    def loading(*args: Any, **kwargs: Any) -> Any:
        with report_layers(state.add), without_table(table):
            result = load_model(*args, **kwargs)
        # Not the worker's: before 0.23 a CPU's has none.
        state.prepare(torch.device(worker.model_runner.device), _most_rows(worker.vllm_config))
        state.rest_bytes = rest_bytes(getattr(worker.model_runner, "model", None), state.layers.values())
        worker.sere_steps = Steps(worker.model_runner, state)
        worker.sere_steps.watch()
        if state.speaks:
            log_start(state)
        return result

    worker.load_model = loading


def _around_warm_up(worker: Any, state: WorkerState, port: MetricsPort | None) -> None:
    """Forget what warm-up steps counted; nobody reads on their own account until they are over.

    While they last graphs may be captured, which a reading would break.
    """
    warm_up = worker.compile_or_warm_up_model

    @functools.wraps(warm_up)
    def warming(*args: Any, **kwargs: Any) -> Any:
        reporter = worker.sere_steps.reporter
        reporter.pause()
        if port is not None:
            port.pause()
        result = warm_up(*args, **kwargs)
        if state.flat.unmeasured and state.layers:
            # Eager engines on a CPU warm up without a step: the first request would wait for the measurement.
            worker.execute_dummy_batch()
        state.reset_counters()
        state.guard.restart()
        log_measured(state)
        reporter.resume()
        if port is not None:
            port.serve(reporter.read, live_page=state.plugin_config.live_page)
        return result

    worker.compile_or_warm_up_model = warming


def _metrics_port(worker: Any, state: WorkerState) -> MetricsPort | None:
    """Open the port on which this worker serves metrics: each data-parallel engine has a rank 0."""
    config = state.plugin_config
    if worker.rank != 0 or config.metrics_port is None:
        return None
    port = MetricsPort(config.metrics_host, config.metrics_port + state.data_parallel_rank)
    _before_shutdown(worker, port.close)
    return port


def _say_last(worker: Any, state: WorkerState) -> None:
    """Log what is left to say when the worker shuts down, also if its model was never loaded."""
    state.guard.last_look()
    steps = getattr(worker, "sere_steps", None)
    if steps is not None:
        steps.reporter.last_line()


def _before_shutdown(worker: Any, act: Callable[[], None]) -> None:
    shutdown = worker.shutdown

    @functools.wraps(shutdown)
    def shutting_down(*args: Any, **kwargs: Any) -> Any:
        act()
        return shutdown(*args, **kwargs)

    worker.shutdown = shutting_down


def _most_rows(vllm_config: Any) -> int:
    """The most rows that a step can have, including padding for graphs."""
    graphs = getattr(vllm_config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return int(max(vllm_config.scheduler_config.max_num_batched_tokens, graphs))
