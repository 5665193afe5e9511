"""Feed one layer's accumulators, one chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.experts import check_weighted_sum, expert_outputs
from sere.calibrate.results import LayerResult
from sere.calibrate.routing import LayerRouting, RoutingRecorder
from sere.calibrate.sanity import (
    check_inputs,
    check_outputs,
    check_tells_apart,
    naming_layer,
    never_reached,
    say_few,
)
from sere.calibrate.stability import Halves
from sere.calibrate.sums import below, under
from sere.errors import UnsupportedModel
from sere.similarity import Accumulator, LayerSimilarity, make_accumulator
from sere.structure import ExpertsLayer


class LayerCollector:
    """Feeds the calls of an experts module to the accumulators of every metric.

    At most one chunk of expert outputs exists at a time: ``[E, t, H]`` float32 with t such that it stays
    within ``config.chunk_bytes`` (or t = 1). Between calls only the accumulators and the routing of the
    sampled tokens are held.

    Attributes:
        layer: The experts module.
        num_tokens: Rows so far; more than the calibration tokens if the model loops over its layers.
    """

    def __init__(
        self,
        layer: ExpertsLayer,
        config: CalibrationConfig,
        sampled: Tensor | None = None,
        num_tokens: int = 0,
    ) -> None:
        """Collect for one layer.

        Args:
            layer: The experts module.
            config: What to compute.
            sampled: The tokens whose routing is recorded, ``[T]``, growing.
            num_tokens: The calibration tokens, two halves of which are compared; 0 for no comparison.
        """
        self.layer = layer
        self._halves = Halves(num_tokens)
        self._recorder = None if sampled is None else RoutingRecorder(layer.num_experts, sampled)
        self._config = config
        self._accumulators: dict[str, Accumulator] = {}
        self._checked = False
        self._calls = 0
        self.num_tokens = 0

    def add(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Add the tokens of one call of the experts module.

        Args:
            hidden: ``[..., H]``.
            ids: The router's choice, ``[..., K]``.
            weights: Its gate weights, ``[..., K]``.

        Raises:
            InputError: Hidden states, gate weights or outputs are NaN or infinite; the text names the layer.
            UnsupportedModel: The module is not the weighted sum of its experts.
        """
        self._calls += 1
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if len(hidden) == 0:
            return
        ids, weights = ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, weights.shape[-1])
        check_inputs(self.layer, hidden, weights)
        size = self.chunk_tokens(hidden.shape[-1])
        parts = (torch.split(tensor, size) for tensor in (hidden, ids, weights))
        for chunk, chunk_ids, chunk_weights in zip(*parts, strict=True):
            self._add_chunk(chunk, chunk_ids, chunk_weights)
            self.num_tokens += len(chunk)
            self._halves.look(self.num_tokens, self._accumulators)

    def chunk_tokens(self, H: int) -> int:
        """Tokens of one chunk, for hidden size ``H``."""
        return max(1, self._config.chunk_bytes // (self.layer.num_experts * H * 4))

    def result(self, num_tokens: int) -> LayerResult:
        """Return all that was measured; as `finish` and `routing` do."""
        found = self.finish(num_tokens)
        return LayerResult(
            found, self.routing(num_tokens), self._halves.finish(self.num_tokens, self._accumulators)
        )

    def finish(self, num_tokens: int = 0) -> dict[str, LayerSimilarity]:
        """Return the layer's similarities by metric; log where fewer than ``num_tokens`` reached it.

        Raises:
            UnsupportedModel: The layer was never called.
            DataError: No token reached it.
            InputError: Its experts have nothing in common.
        """
        if not self._accumulators:
            raise never_reached(self.layer, self._calls)
        if self.num_tokens < num_tokens:
            say_few(self.layer, self.num_tokens, num_tokens)
        with naming_layer(self.layer):
            found = {name: accumulator.finalize() for name, accumulator in self._accumulators.items()}
        for name, similarity in found.items():
            check_tells_apart(self.layer, name, similarity)
        return found

    def routing(self, num_tokens: int) -> LayerRouting | None:
        """Return how the router chose on the sampled tokens; None unless each token came exactly once.

        Args:
            num_tokens: The calibration tokens.
        """
        return None if self._recorder is None else self._recorder.finish(num_tokens)

    def state(self) -> dict[str, Tensor]:
        """Return all that was collected so far, as tensors that `load_state` reads back."""
        tensors = {"rows": torch.tensor([self.num_tokens, self._calls], device="cpu")}
        for name, accumulator in self._accumulators.items():
            tensors |= under(f"sums/{name}", accumulator.state())
        tensors |= under("halves", self._halves.state())
        if self._recorder is not None:
            tensors |= under("routing", self._recorder.state())
        return tensors

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from ``state``. The module is checked again to be the weighted sum of its experts.

        Args:
            state: Of a collector of the same layer and config.
            device: Where the layer's hidden states are.

        Raises:
            InputError: The state belongs to another layer or metric.
        """
        self.num_tokens, self._calls = state["rows"].tolist()
        for name in self._config.output_metrics:
            if sums := below(f"sums/{name}", state):
                self._accumulator(name, device).load_state(sums)
        self._halves.load_state(below("halves", state))
        if self._recorder is not None:
            self._recorder.load_state(below("routing", state))

    def _add_chunk(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
        outputs = expert_outputs(self.layer, hidden)
        check_outputs(self.layer, outputs)
        if not self._checked:
            check_weighted_sum(self.layer, hidden, ids, weights, outputs)
            self._checked = True
        with naming_layer(self.layer):
            for name in self._config.output_metrics:
                self._accumulator(name, hidden.device).update(outputs, ids, weights)
        if self._recorder is not None:
            self._recorder.add(outputs, ids, weights)

    def _accumulator(self, name: str, device: torch.device) -> Accumulator:
        if name not in self._accumulators:
            parameters = self._config.parameters.get(name, {})
            self._accumulators[name] = make_accumulator(
                name, self.layer.num_experts, device=device, **parameters
            )
        return self._accumulators[name]


def routing_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (hidden states, ids, weights) from the arguments of an experts module's call.

    Raises:
        UnsupportedModel: There are not three.
    """
    values = (*args, *kwargs.values())
    if len(values) < 3:
        raise UnsupportedModel(
            f"{type(module).__name__}: called with {len(values)} arguments; expected hidden states, "
            "ids and weights"
        )
    return values[0], values[1], values[2]
