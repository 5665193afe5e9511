"""Learn, before each step of a model runner, which requests its batch holds, in the order of its rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sere.integrations.vllm.start import versions

Announce = Callable[[Any, list[str], Any], None]
"""Given vLLM's ``SchedulerOutput``, the requests' names, and how many rows each has, ``[requests]``."""


def watch_batches(runner: Any, announce: Announce, unknown: Callable[[], None]) -> None:
    """Announce each step's batch once the model runner has ordered it.

    Args:
        runner: vLLM's model runner, V1 or V2; methods are replaced on this object.
        announce: Called with each batch.
        unknown: Called in its place where the device drops drafted tokens by itself, so that nobody knows
            which rows are whose.

    Raises:
        UnsupportedEngine: It is a model runner of another kind.
    """
    if versions.prepares_in_place(runner):
        in_place = runner._prepare_inputs

        @functools.wraps(in_place)
        def preparing(scheduler_output: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
            # V1: the order of requests in the batch is known by now.
            counted = np.asarray(counts)
            announce(scheduler_output, runner.input_batch.req_ids[: len(counted)], counted)
            return in_place(scheduler_output, counts, *args, **kwargs)

        runner._prepare_inputs = preparing
        return
    prepare = runner.prepare_inputs

    @functools.wraps(prepare)
    def prepared(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        # V2: the returned batch says which rows belong to which request.
        batch = prepare(scheduler_output, *args, **kwargs)
        counts = np.asarray(batch.num_scheduled_tokens)
        if int(counts.sum()) == int(batch.num_tokens):
            announce(scheduler_output, batch.req_ids[: len(counts)], counts)
        else:
            unknown()
        return batch

    runner.prepare_inputs = prepared
