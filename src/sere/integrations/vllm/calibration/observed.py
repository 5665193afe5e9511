"""The MoE layers of one worker while it calibrates: who is told of each layer's rows, in the texts' order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sere.errors import EngineError, SereError, UnsupportedEngine, UnsupportedModel
from sere.integrations.vllm.calibration.engine_experts import EngineExperts
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker import expert_kernels, router_hook
from sere.integrations.vllm.worker.batches import watch_batches
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.reroute import Routing
from sere.structure import ExpertsLayer, is_of_other_tower

Observe = Callable[[int, Tensor, Tensor, Tensor], None]
"""Given a layer's index, hidden states ``[T, H]``, ids and weights ``[T, K]`` of a step's rows, in order."""


class ObservedLayers:
    """The MoE layers of one worker, each with the engine's expert kernel as its module.

    Args:
        vllm_config: vLLM's ``VllmConfig``.

    Attributes:
        layers: By decoder-layer index, once the model is loaded.
        observe: Called in each layer of a step of texts; None calls nobody.
        rows: Rows of texts so far.
        error: Why ``observe`` is called no more, or None.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.layers: dict[int, ExpertsLayer] = {}
        self.observe: Observe | None = None
        self.rows = 0
        self.error: SereError | None = None
        self._found: dict[int, RoutedLayer] = {}
        self._order: Tensor | None = None
        self._last_text = -1

    @property
    def worker_rank(self) -> int:
        """The worker's number among all of the engine."""
        return int(self.vllm_config.parallel_config.rank)

    @property
    def rank(self) -> int:
        """The worker's number among those that hold the same layers."""
        return self.worker_rank % int(self.vllm_config.parallel_config.tensor_parallel_size)

    def add(self, runner: Any) -> None:
        """Add one MoE layer while the model is built; experts for images or sound are left alone.

        Raises:
            UnsupportedEngine: Two layers have one index, or the layer's router cannot be observed.
        """
        if is_of_other_tower(str(runner.layer_name)):
            return
        layer = RoutedLayer(runner)
        index = layer.shape.index
        other = self._found.setdefault(index, layer)
        if other is not layer:
            raise UnsupportedEngine(
                f"{other.name} and {layer.name} are both layer {index}; a model that contains two language "
                "models cannot be calibrated in vLLM"
            )

        def act(hidden: Tensor, _: Tensor, ids: Tensor, weights: Tensor) -> Routing:
            self._saw(layer, hidden, ids, weights)
            return Routing(ids, weights)

        router_hook.after_router(runner.router, layer.name, act)

    def prepare(self, model_runner: Any) -> None:
        """Prepare all layers once the model is loaded.

        Args:
            model_runner: vLLM's model runner.

        Raises:
            UnsupportedModel: The model has no MoE layer.
            UnsupportedEngine: A layer routes inside its kernel, or gets the rows of several ranks.
        """
        if not self._found and int(self.vllm_config.parallel_config.pipeline_parallel_size) == 1:
            raise UnsupportedModel(
                f"{self.vllm_config.model_config.model}: vLLM built no Mixture-of-Experts layer for it, so "
                "there is nothing to calibrate"
            )
        most = int(self.vllm_config.scheduler_config.max_num_batched_tokens)
        for index, layer in sorted(self._found.items()):
            expert_kernels.kernel_of(layer, "its experts cannot be computed one by one")
            versions.check_computes(layer.runner, layer.name)
            shape = layer.shape
            self.layers[index] = ExpertsLayer(
                index, layer.name, EngineExperts(layer.runner, most), shape.num_experts, shape.top_k
            )
        watch_batches(model_runner, self._announce, self._forget)

    def _announce(self, _: Any, names: list[str], counts: Any) -> None:
        """Learn which rows of the coming step are which texts': requests are named by their number."""
        if self.observe is None:
            return
        starts = [0, *counts.cumsum().tolist()]
        texts = sorted((int(name.partition("-")[0]), place) for place, name in enumerate(names))
        if self.error is None and texts[0][0] <= self._last_text:
            self.error = EngineError(
                f"text {texts[0][0]}: the engine read it in several steps or after a later one, so its "
                "tokens would be mistaken for others; start without what splits prompts (--engine-option)"
            )
        self._last_text = texts[-1][0]
        rows = [row for _, place in texts for row in range(starts[place], starts[place + 1])]
        self._order = torch.tensor(rows, device="cpu")
        self.rows += len(rows)

    def _forget(self) -> None:
        self._order = None

    def _saw(self, layer: RoutedLayer, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        if self.observe is None or self._order is None or self.error is not None:
            return
        try:
            if len(hidden) != len(self._order):
                raise EngineError(
                    f"{layer.name}: expected the step's {len(self._order)} rows, got {len(hidden)}; start "
                    "without what adds rows to a step (--engine-option)"
                )
            # What inference mode makes cannot be written outside it.
            with torch.inference_mode(False), torch.no_grad():
                order = self._order.to(hidden.device)
                scaled = weights[order, : layer.shape.top_k] * versions.output_scale(layer.runner)
                self.observe(layer.shape.index, hidden[order], ids[order, : layer.shape.top_k].long(), scaled)
        except SereError as error:
            # The same on all ranks, as they see the same rows; raised here, it would end the engine.
            self.error = error
