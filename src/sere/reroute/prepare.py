"""A layer and its settings, prepared: what every step of an engine calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError
from sere.reroute import operator
from sere.reroute.backends.registry import implementation, on_device, select
from sere.reroute.batch import Routing, TokenBatch
from sere.reroute.checks import check_batch
from sere.reroute.types import MERGE_MODES, Neighbors, Rules, prepare_neighbors
from sere.similarity.layer import LayerSimilarity, check_scale


class PreparedLayer:
    """One layer and its settings on one device, ready for every step: made by ``prepare_layer``.

    Attributes:
        backend: The name of the implementation that runs.
        device: Where the steps must be.
        config: The settings that hold.
    """

    __slots__ = ("_neighbors", "_rules", "_run", "backend", "config", "device")

    def __init__(self, neighbors: Neighbors, rules: Rules, config: RerouteConfig, backend: str) -> None:
        self._neighbors, self._rules, self.config = neighbors, rules, config
        self.backend, self.device = backend, neighbors.order.device
        self._run = implementation(backend)

    def route(self, batch: TokenBatch, counters: Tensor | None = None) -> Routing:
        """Re-route one step.

        Args:
            batch: The step, on this layer's device; ``router_scores`` are not read.
            counters: int64, one entry per name in ``COUNTERS``; incremented in place unless no expert is
                primary. None counts nothing.

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            InputError: A shape, dtype, device or bound is wrong; the text gives what was expected and what
                came.

        Source: docs/method.md section 4.
        """
        check_batch(batch, counters)
        # A tensor's device always has its index, so this compares like with like.
        if self.device != batch.topk_ids.device:
            raise InputError(
                f"topk_ids: expected ids on {self.device}, where the layer was prepared, got "
                f"{batch.topk_ids.device}; prepare the layer for each device"
            )
        run = operator.call if torch.compiler.is_compiling() and self.backend != "torch" else None
        arguments = (
            batch.topk_ids, batch.topk_weights, self._neighbors, self._rules, batch.row_budgets,
            batch.num_tokens, counters,
        )  # fmt: skip
        if run is None:
            return Routing(*self._run(*arguments))
        return Routing(*run(*arguments, self.backend))

    def tensors(self) -> dict[str, Tensor]:
        """Return every device tensor that ``route`` reads, by name: what must survive an engine's sleep."""
        names = ("order", "count", "position", "lists", "keep", "scale")
        named = {name: getattr(self._neighbors, name) for name in names}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def update(self, other: PreparedLayer) -> None:
        """Write another threshold and keep-list over this one's, in place, where compiled code reads them.

        Args:
            other: The same layer, prepared with settings that differ in ``threshold`` and ``keep`` only.

        Raises:
            ConfigError: Another backend, or a tensor of another shape, dtype or device.
        """
        mine, theirs = self.tensors(), other.tensors()
        if self.backend != other.backend or mine.keys() != theirs.keys():
            raise ConfigError(
                "a prepared layer is updated from another backend's; prepare it for the same one"
            )
        for name, tensor in theirs.items():
            if (tensor.shape, tensor.dtype, tensor.device) != (
                mine[name].shape, mine[name].dtype, mine[name].device,
            ):  # fmt: skip
                raise ConfigError(
                    f"{name}: expected shape {list(mine[name].shape)}, got {list(tensor.shape)}"
                )
        for name, tensor in theirs.items():
            mine[name].copy_(tensor)
        self.config = other.config


def prepare_layer(
    layer: LayerSimilarity,
    config: RerouteConfig,
    *,
    keep: Sequence[int] = (),
    scale: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> PreparedLayer:
    """Prepare a layer: sort the neighbors, cut them at ρ, choose the backend.

    Args:
        layer: The layer's similarities.
        config: The settings; ``config.keep`` is not read here, it is for all layers.
        keep: Experts of this layer that are never replaced.
        scale: ``[E, E]``, float32, finite: factors for the weights of re-routed slots, or None. Copied.
        device: Where the steps will run.

    Raises:
        InputError: ``keep`` or ``scale`` does not fit the layer.
        ConfigError: ``config.sentinel`` is the id of one of the layer's experts.
        BackendUnavailable: The named backend cannot run on the device.
    """
    if scale is not None:
        # Compiled backends read it through a raw pointer: a wrong shape would read foreign memory.
        check_scale(scale, layer.num_experts)
    if config.sentinel is not None and 0 <= config.sentinel < layer.num_experts:
        raise ConfigError(
            f"sentinel: expected the id of no expert, such as -1 or {layer.num_experts}, got "
            f"{config.sentinel}, one of the layer's {layer.num_experts} experts, which would run for every "
            "freed slot"
        )
    device = torch.device(device)
    backend = select(config.backend, device.type, layer.num_experts)
    neighbors = prepare_neighbors(layer, threshold=config.threshold, keep=keep, scale=scale, device=device)
    rules = Rules(
        select_top_k=config.select_top_k,
        min_active=config.min_active,
        active_targets=config.targets == "active",
        merge=MERGE_MODES.index(config.merge),
        sentinel=0 if config.sentinel is None else config.sentinel,
    )
    backend = on_device(backend, config.backend, neighbors.order.device)
    return PreparedLayer(neighbors, rules, config, backend)
