"""What runs in each worker of an engine that calibrates; the engine's ``collective_rpc`` calls it.

Every function returns its errors: where one worker of several raises, vLLM reads the answers of the others as
those of the next call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sere.calibrate.collect import LayerCollector
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.pass_folder import sums_file
from sere.calibrate.results import LayerResult
from sere.calibrate.sums import below, load_tensors, save_sums
from sere.errors import SereError, UnsupportedEngine
from sere.integrations.vllm.calibration.observed import ObservedLayers
from sere.integrations.vllm.calibration.request import ATTRIBUTE

logger = logging.getLogger("vllm.sere")

Answer = dict[str, Any]

_COLLECTORS = "sere_collectors"


class FoundLayer(NamedTuple):
    """What was measured in one layer of the engine.

    Attributes:
        name: vLLM's name of the layer.
        num_experts: E.
        top_k: K.
        kernel: Class name of its expert kernel, or None where it cannot be told.
        result: What was measured.
    """

    name: str
    num_experts: int
    top_k: int
    kernel: str | None
    result: LayerResult


@dataclass(frozen=True)
class Task:
    """What workers are asked to do.

    Attributes:
        config: What to compute.
        sampled: The tokens whose routing is recorded, ``[T]``, growing.
        num_tokens: The calibration tokens.
        folder: Where sums are kept, an absolute path; None keeps nothing.
        done: The tokens of which it holds sums.
    """

    config: CalibrationConfig
    sampled: Tensor
    num_tokens: int
    folder: Path | None = None
    done: int = 0


def _answering(call: Callable[..., Answer]) -> Callable[..., Answer]:
    @wraps(call)
    def answer(worker: Any, *args: Any) -> Answer:
        try:
            observed = getattr(worker, ATTRIBUTE, None)
            if observed is None:
                raise UnsupportedEngine(
                    "the workers of this engine do not know sere: install sere in their environment, and "
                    "start without SERE_DISABLE, and with sere among VLLM_PLUGINS if that is set"
                )
            return call(worker, observed, *args)
        except SereError as error:
            return {"error": (type(error).__name__, str(error))}
        except Exception as error:
            logger.exception("sere: calibrating failed")
            return {"failure": f"{type(error).__name__}: {error}"}

    return answer


@_answering
def begin(worker: Any, observed: ObservedLayers, task: Task) -> Answer:
    """Collect from the next step on; where an interrupted run has left sums, continue from these."""
    collectors = {
        index: LayerCollector(layer, task.config, task.sampled, task.num_tokens)
        for index, layer in observed.layers.items()
    }

    if task.folder is not None and task.done and observed.rank == 0:
        sums = load_tensors(sums_file(task.folder, task.done, observed.worker_rank))
        for index, collector in collectors.items():
            collector.load_state(below(index, sums), torch.device(worker.device))

    def observe(index: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        collectors[index].add(hidden, ids, weights)

    setattr(worker, _COLLECTORS, collectors)
    observed.observe = observe
    return {}


@_answering
def progress(_: Any, observed: ObservedLayers) -> Answer:
    """Return how many rows of texts came so far."""
    if observed.error is not None:
        raise observed.error
    return {"rows": observed.rows}


@_answering
def save(worker: Any, observed: ObservedLayers, task: Task, done: int) -> Answer:
    """Write the sums of the first ``done`` tokens; of the ranks that hold the same layers, one does.

    Returns:
        The file that was written, or None.
    """
    if observed.error is not None:
        raise observed.error
    if task.folder is None or observed.rank != 0:
        return {"file": None}
    held = {index: one.state() for index, one in getattr(worker, _COLLECTORS).items()}
    file = sums_file(task.folder, done, observed.worker_rank)
    save_sums(file, held)
    return {"file": str(file)}


@_answering
def finish(worker: Any, observed: ObservedLayers, task: Task) -> Answer:
    """Return what was measured in this worker's layers; of the ranks that hold the same ones, one does."""
    observed.observe = None
    if observed.error is not None:
        raise observed.error
    if observed.rank != 0:
        return {"layers": {}}
    found = {}
    for index, collector in getattr(worker, _COLLECTORS).items():
        layer = collector.layer
        result = collector.result(task.num_tokens)
        found[index] = FoundLayer(
            layer.name, layer.num_experts, layer.top_k, layer.module.kernel, _on_cpu(result)
        )
    return {"layers": found}


def _on_cpu(result: LayerResult) -> LayerResult:
    return result._replace(halves={name: pair.cpu() for name, pair in result.halves.items()})
