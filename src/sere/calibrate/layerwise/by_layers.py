"""Calibrate a checkpoint layer by layer: one decoder layer's weights in memory at a time."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sere.calibrate.collect import LayerCollector
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.float32_products import float32_products
from sere.calibrate.in_memory import collecting
from sere.calibrate.layerwise.hidden_states import MemoryStates, States
from sere.calibrate.layerwise.runner import LayerRunner
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder
from sere.calibrate.packing import Tokens
from sere.calibrate.progress import Bar, progress_bar
from sere.calibrate.results import LayerResult, Results
from sere.calibrate.routing import choose_tokens
from sere.calibrate.vocabulary import check_tokens
from sere.calibrate.weights import similarity_of_weights
from sere.structure import ExpertsLayer


def collect_layerwise(
    skeleton: Skeleton,
    tokens: Tokens | None,
    config: CalibrationConfig,
    work: WorkFolder,
    *,
    states_in_memory: bool,
) -> Results:
    """Compute every layer's similarities with one decoder layer's weights in memory at a time.

    Args:
        skeleton: The model without weights.
        tokens: The calibration tokens; None if no metric needs any.
        config: What to compute.
        work: Folder for finished layers; the run starts after those that are in it.
        states_in_memory: Keep the hidden states in memory; then the run cannot be resumed.

    Returns:
        Similarities and routing, equal to `collect_in_memory`'s.

    Raises:
        DataError: A token is beyond the model's embedding.
        ConfigError: Sequences are longer than its learned positions.
        UnsupportedModel: The decoder layers hand more to each other than hidden states or run more than
            once, or a layer is not the weighted sum of its experts.
        InputError: The checkpoint lacks weights, or the work folder is damaged.
    """
    if tokens is not None:
        check_tokens(tokens, skeleton.model)
    experts = {_index(skeleton, layer): layer for layer in skeleton.experts}
    pass_ = _Pass(skeleton, tokens if config.output_metrics else None, config, work, states_in_memory)
    pass_.run(experts)
    results = Results(config.metrics)
    for index, layer in experts.items():
        results.add(layer.index, work.load_layer(index))
    return results


class _Pass:
    """One pass through the decoder layers, from the first unfinished one to the last with experts."""

    def __init__(
        self,
        skeleton: Skeleton,
        tokens: Tokens | None,
        config: CalibrationConfig,
        work: WorkFolder,
        in_memory: bool,
    ) -> None:
        self._skeleton = skeleton
        self._tokens = tokens
        self._config = config
        self._work = work
        self._in_memory = in_memory
        self._states: States | None = work.states()
        self._sampled = None if tokens is None else choose_tokens(tokens, config.seed).positions

    def run(self, experts: dict[int, ExpertsLayer]) -> None:
        last, start = max(experts), self._work.next_layer
        count = 0 if self._tokens is None else self._tokens.num_tokens
        runner: LayerRunner | None = None
        if self._tokens is not None and start <= last:
            self._skeleton.load_rest()
            runner = LayerRunner(self._skeleton.model, self._skeleton.layers)
        total, done = count * (last + 1), count * start
        with progress_bar(self._config.progress, total, "calibrating", done=done) as bar:
            for index in range(start, last + 1):
                self._layer(index, experts.get(index), runner, bar, is_last=index == last)

    def _layer(
        self, index: int, layer: ExpertsLayer | None, runner: LayerRunner | None, bar: Bar, *, is_last: bool
    ) -> None:
        if runner is None and layer is None:
            return
        found = LayerResult({}, None, {})
        leaving: States | None = None
        with self._skeleton.loaded(index):
            if layer is not None:
                of_weights = {
                    name: similarity_of_weights(layer, name) for name in self._config.weight_metrics
                }
                found.similarities.update(of_weights)
            if runner is not None:
                leaving = None if is_last else self._new_states(index + 1)
                with float32_products(self._skeleton.device):
                    of_outputs = self._outputs(index, layer, runner, leaving, bar)
                found = of_outputs._replace(similarities=found.similarities | of_outputs.similarities)
        _return_freed_memory()
        if layer is not None:
            self._work.save_layer(index, found)
        self._work.finish(index, leaving)
        if self._states is not None:
            self._states.discard()
        self._states = leaving

    def _outputs(
        self, index: int, layer: ExpertsLayer | None, runner: LayerRunner, leaving: States | None, bar: Bar
    ) -> LayerResult:
        """Run the layer over all batches; fill ``leaving``; return what was found of its experts."""
        if layer is None:
            self._run_batches(index, runner, leaving, bar)
            return LayerResult({}, None, {})
        count = 0 if self._tokens is None else self._tokens.num_tokens
        collector = LayerCollector(layer, self._config, self._sampled, count)
        with collecting(collector):
            self._run_batches(index, runner, leaving, bar)
        return collector.result(count)

    def _run_batches(self, index: int, runner: LayerRunner, leaving: States | None, bar: Bar) -> None:
        assert self._tokens is not None  # a runner exists only with tokens
        device = self._skeleton.device
        for ids, hidden in self._batches(self._tokens):
            entering = None if hidden is None else hidden.to(device)
            output = runner.run(index, ids.to(device), entering)
            if leaving is not None:
                leaving.append(output)
            bar.update(ids.numel())

    def _batches(self, tokens: Tokens) -> Iterator[tuple[Tensor, Tensor | None]]:
        batches = tokens.batches(self._config.batch_size)
        if self._states is None:
            return zip(batches, itertools.repeat(None))
        return zip(batches, self._states.read(), strict=True)

    def _new_states(self, index: int) -> States:
        return MemoryStates() if self._in_memory else self._work.new_states(index)


def _index(skeleton: Skeleton, layer: ExpertsLayer) -> int:
    return int(layer.name.removeprefix(f"{skeleton.stack}.").partition(".")[0])


def _return_freed_memory() -> None:
    """Return freed memory to the system: glibc keeps the pages of small tensors, and a layer has hundreds."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
