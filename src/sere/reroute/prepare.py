"""A layer and its settings, prepared once: what every step of an engine calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError, name_some
from sere.reroute import operator
from sere.reroute.backends.registry import implementation, on_device, select
from sere.reroute.batch import USUAL_DTYPES, Routing, StepDtypes, TokenBatch
from sere.reroute.checks import check_batch, check_dtypes
from sere.reroute.constants import MERGE_SENTINEL
from sere.reroute.limits import layer_limits
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.similarity.layer import LayerSimilarity, check_scale


class PreparedLayer:
    """One layer and its settings on one device, with what its backend reads; ``prepare_layer`` makes it.

    Attributes:
        backend: The name of the implementation that runs.
        config: The settings that hold.
        device: Where the steps must be.
    """

    __slots__ = ("_large", "_layer", "_run", "backend", "config", "device")

    def __init__(self, raw: RawLayer, config: RerouteConfig, backend: str, device: torch.device) -> None:
        found = implementation(backend)
        self._layer, self._run = found.prepare(raw, device), found.run
        # From how many rows on, and how then; see `skip_freed_slots`.
        self._large: tuple[int, KernelConfig] | None = None
        self.backend, self.config = backend, config
        # With the device's index, as tensors have it.
        self.device = self._layer.keep.device

    def route(self, batch: TokenBatch, counters: Tensor | None = None) -> Routing:
        """Re-route one step.

        Args:
            batch: The step, on this layer's device; ``router_scores`` are not read.
            counters: int64, one entry per name in ``COUNTERS``; incremented in place unless no expert is
                primary. None counts nothing.

        Returns:
            New ids and weights; same shapes, dtypes and device.

        Raises:
            InputError: A shape, dtype, device or bound is wrong; the text says what was expected.
            BackendUnavailable: The layer was not prepared for these dtypes, and at their first step the
                backend cannot run them, or a CUDA graph is being captured.

        Source: docs/method.md section 4.
        """
        check_batch(batch, counters)
        if self.device != batch.topk_ids.device:
            raise InputError(
                f"topk_ids: expected ids on {self.device}, where the layer was prepared, got "
                f"{batch.topk_ids.device}; prepare the layer for each device"
            )
        layer = self._layer
        if self._large is not None and batch.topk_ids.shape[0] >= self._large[0]:
            layer = layer._replace(config=self._large[1])
        if torch.compiler.is_compiling() and self.backend != "torch":
            return operator.call(self.backend, batch, layer, counters)
        return self._run(batch, layer, counters)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that ``route`` reads beside the batch, by name."""
        return {name: part for name, part in self._layer._asdict().items() if isinstance(part, Tensor)}

    def read_limits_from(self, limits: Tensor) -> None:
        """Let the layer read its limits from a tensor of the caller, who may write it between two steps.

        Call this before a step is compiled or captured.

        Args:
            limits: ``[LIMITS]``, int32, contiguous, on the layer's device, as `layer_limits` returns them.
                What the layer has is written into it.

        Raises:
            InputError: Its shape, dtype or device is another, or it is not contiguous.
        """
        mine = self.tensors()["limits"]
        wanted, given = (f"{_kind(tensor)} on {tensor.device}" for tensor in (mine, limits))
        if wanted != given or not limits.is_contiguous():
            raise InputError(
                f"limits: expected a contiguous tensor {wanted}, got {given}; make one of this kind"
            )
        limits.copy_(mine)
        self._layer = self._layer._replace(limits=limits)

    def skip_freed_slots(self, rows: int, sentinel: int) -> None:
        """Act as with ``merge="sentinel"`` in steps of at least so many rows, whatever they hold.

        The number of rows is a shape, so a captured graph has one way for good. Call this before a step is
        compiled or captured.

        Args:
            rows: Rows of ``topk_ids``, padding among them.
            sentinel: The id of freed slots.

        Raises:
            ConfigError: The sentinel is the id of one of the layer's experts.
        """
        _check_sentinel(sentinel, self._layer.keep.shape[0])
        self._large = rows, self._layer.config._replace(merge=MERGE_SENTINEL, sentinel=sentinel)

    def check_update(self, other: PreparedLayer) -> None:
        """Refuse what `update` cannot write over this layer.

        Args:
            other: The same layer, prepared for the same backend; its tensors may be on the host.

        Raises:
            ConfigError: A setting differs that compiled code and graphs hold as a constant.
            InputError: The two do not have the same tensors by name, shape and dtype.
        """
        mine, theirs = self._layer.config, other._layer.config
        changed = [name for name, a, b in zip(mine._fields, mine, theirs, strict=True) if a != b]
        if self.backend != other.backend or changed:
            raise ConfigError(
                f"{name_some(changed or ['backend'])}: cannot change in a prepared layer, only select_top_k, "
                "active_experts, threshold, min_gain, keep and scale can; prepare another layer"
            )
        old, new = _kinds(self.tensors()), _kinds(other.tensors())
        if old != new:
            raise InputError(f"expected a prepared layer with {old}, got {new}; prepare the same layer")

    def update(self, other: PreparedLayer) -> None:
        """Write other limits, another threshold, keep-list or scale over this layer's, in place.

        Compiled code and captured graphs then read the new values. What is refused writes nothing. What was
        prepared on the host costs the device copies and no memory.

        Args:
            other: As for `check_update`.

        Raises:
            ConfigError, InputError: `check_update` refuses it.
        """
        self.check_update(other)
        old = self.tensors()
        for name, tensor in other.tensors().items():
            old[name].copy_(tensor)
        self.config = other.config


def prepare_layer(
    layer: LayerSimilarity,
    config: RerouteConfig,
    *,
    index: int | None = None,
    top_k: int | None = None,
    least_active: int = 0,
    keep: Sequence[int] = (),
    scale: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtypes: Sequence[StepDtypes] = USUAL_DTYPES,
    on_host: bool = False,
) -> PreparedLayer:
    """Prepare a layer for many steps: choose the backend, which sorts the similarities as it needs them.

    Args:
        layer: The layer's similarities.
        config: The settings. Not read: ``keep``, ``use_scale`` and ``tier``, which need the table.
        index: Decoder-layer index, for settings of this layer alone; None for those of all layers.
        top_k: K; needed for ``active_experts="auto"``, which is the default, and for a backend that takes as
            many slots per row.
        least_active: M is at least this, whatever the settings say, but at most E.
        keep: Experts of this layer that are never replaced.
        scale: ``[E, E]``, float32, finite: factors for the weights of re-routed slots, or None. Copied.
        device: Where the steps will run.
        dtypes: Of the steps that will run, as far as they are known: a GPU's backend is tried with each of
            them. Other steps can run, too, but if the backend fails with them, their first step raises.
        on_host: Leave the tensors on the CPU, for `PreparedLayer.update` of a layer on the device.

    Raises:
        InputError: ``keep`` or ``scale`` does not fit the layer, or a step cannot have one of ``dtypes``.
        ConfigError: ``config.sentinel`` is the id of one of the layer's experts, K is needed and missing, or
            ``min_gain`` is given without ``scale``.
        BackendUnavailable: The named backend cannot run on the device, or not with these dtypes.
    """
    E = layer.num_experts
    for one in dtypes:
        check_dtypes(*one)
    if scale is not None:
        # Compiled backends read it through a raw pointer: a wrong shape would read foreign memory.
        check_scale(scale, E)
    if config.sentinel is not None:
        _check_sentinel(config.sentinel, E)
    settings = config.for_layer(index)
    if settings.min_gain and scale is None:
        raise ConfigError(
            f"min_gain={settings.min_gain:g}: needs factors (scale), because only with them a similarity is "
            "the share of an expert's output that its substitute gives; give scale, or min_gain=0"
        )
    where = torch.empty(0, device=device).device
    K = top_k or 1
    kinds = tuple(dtypes) or USUAL_DTYPES
    backend = select(config.backend, where.type, E, K, kinds)
    backend = on_device(backend, config.backend, where, E, K, kinds)
    # Tensors made in inference mode could not be updated outside it.
    with torch.inference_mode(False):
        raw = RawLayer(
            layer.similarity.detach().to("cpu", torch.float32),
            settings.threshold,
            layer_limits(settings, E, top_k, least_active=least_active),
            _keep_mask(keep, E),
            _sensitivity(layer),
            None if scale is None else scale.detach(),
            KernelConfig.of(config),
        )
        return PreparedLayer(raw, config, backend, torch.device("cpu") if on_host else where)


def _check_sentinel(sentinel: int, E: int) -> None:
    if 0 <= sentinel < E:
        raise ConfigError(
            f"sentinel: expected an id outside [0, {E}), such as -1, got {sentinel}, which is one of the "
            f"layer's {E} experts: it would run for every freed slot"
        )


def _sensitivity(layer: LayerSimilarity) -> Tensor:
    """Return the layer's sensitivities on the host; 1 for each expert if none were measured."""
    if layer.sensitivity is None:
        return torch.ones(layer.num_experts, device="cpu")
    return layer.sensitivity.detach().to("cpu", torch.float32)


def _keep_mask(keep: Sequence[int], E: int) -> Tensor:
    mask = torch.zeros(E, dtype=torch.bool, device="cpu")
    for expert in keep:
        if isinstance(expert, bool | float) or not 0 <= expert < E:
            raise InputError(f"keep: expected expert ids in [0, {E}), got {expert}")
        mask[expert] = True
    return mask


def _kinds(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: _kind(tensor) for name, tensor in tensors.items()}


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
