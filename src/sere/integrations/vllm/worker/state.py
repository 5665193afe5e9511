"""One engine in one worker process: its layers, its settings, its signal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sere.config import RerouteConfig
from sere.errors import SereError, UnsupportedEngine
from sere.integrations.vllm.options import Options
from sere.integrations.vllm.start import features, tables, versions
from sere.integrations.vllm.tiers import COUNT_ONLY_S, PADDING
from sere.integrations.vllm.worker import expert_kernels, router_hook
from sere.integrations.vllm.worker.guard import Guard
from sere.integrations.vllm.worker.row_budgets import RowSignal
from sere.integrations.vllm.worker.step_counts import StepCounts
from sere.policies.base import LayerShape
from sere.policies.sere import Sere
from sere.reroute import PreparedLayer, TokenBatch
from sere.table import SimilarityTable

if TYPE_CHECKING:
    from sere.integrations.vllm.worker.steps import Steps

# A child of vLLM's logger: its lines come out where and as the engine's own do, in every process.
logger = logging.getLogger("vllm.sere")

_ID_DTYPES = (torch.int32, torch.int64)


class RoutedLayer:
    """One MoE layer of the engine.

    Attributes:
        index: Decoder-layer index.
        name: vLLM's name of the layer.
        runner: Its ``MoERunner``.
        num_experts: Routed experts, without EPLB's copies.
        top_k: Routed slots per token.
        prepared: The prepared similarities and settings; None until the model is loaded.
        counters: int64, one entry per name in ``sere.reroute.COUNTERS``, on the device.
        signal: The budgets of the coming step's rows.
    """

    def __init__(self, runner: Any) -> None:
        self.runner, self.name = runner, str(runner.layer_name)
        self.index = router_hook.layer_index(self.name)
        self.num_experts, self.top_k = versions.logical_experts(runner), int(runner.router.top_k)
        self.prepared: PreparedLayer | None = None
        self.counters: Tensor | None = None
        self.signal: RowSignal | None = None

    @property
    def shape(self) -> LayerShape:
        """The layer as routing rules see it."""
        return LayerShape(self.index, self.num_experts, self.top_k)

    def route(self, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Re-route one step; called where the router returns.

        Raises:
            SereError: The engine runs the layer before its model was loaded.
        """
        prepared, signal = self.prepared, self.signal
        if prepared is None or signal is None:
            raise SereError(f"{self.name}: runs before re-routing was prepared; please report this")
        if signal.skip:
            return weights, ids
        # Some kernels ask for uint32 or int16 ids.
        narrow = ids if ids.dtype in _ID_DTYPES else ids.to(torch.int32)
        batch = TokenBatch(narrow, weights, signal.at(ids.shape[0]))
        routing = prepared.route(batch, self.counters)
        return routing.weights, routing.ids if narrow is ids else routing.ids.to(ids.dtype)


class Session:
    """Re-routing of one engine in one worker.

    Args:
        options: The plug-in's settings.
        vllm_config: vLLM's ``VllmConfig``.
        table: The similarities, checked against the model's config.

    Attributes:
        layers: The MoE layers, by index, once the model is built.
        config: The settings as they fit the expert kernel.
        enabled: Whether steps are re-routed at present.
        signal: The budgets of the coming step's rows; None until the model is loaded.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        steps: What watches the model runner; None until the model is loaded.
        counts: Steps by what was done with them.
        guard: What says in the log why nothing was re-routed.
    """

    def __init__(self, options: Options, vllm_config: Any, table: SimilarityTable) -> None:
        self.options, self.vllm_config, self.table = options, vllm_config, table
        self.config: RerouteConfig = options.reroute
        self.enabled = options.enabled
        self.layers: dict[int, RoutedLayer] = {}
        self.signal: RowSignal | None = None
        self.kernel: str | None = None
        self.steps: Steps | None = None
        self.counts = StepCounts()
        self.guard = Guard(self)

    def add(self, runner: Any) -> None:
        """Take in one MoE layer while the model is built.

        Raises:
            TableError: The table does not know this layer.
            UnsupportedEngine: The layer cannot be re-routed.
        """
        layer = RoutedLayer(runner)
        tables.check_layer(self.table, layer.index, layer.name, E=layer.num_experts)
        other = self.layers.setdefault(layer.index, layer)
        if other is not layer:
            raise UnsupportedEngine(
                f"{other.name} and {layer.name} are both layer {layer.index}; a model of two language models "
                "cannot be re-routed"
            )
        router_hook.intercept(runner.router, layer)

    def prepare(self, device: torch.device, rows: int) -> None:
        """Prepare all layers once the model is loaded and its expert kernels are known.

        Args:
            device: Where the model runs.
            rows: Most rows of a step.

        Raises:
            UnsupportedEngine: A layer routes inside its kernel.
            TableMismatch: The table has other layers than the model.
            ConfigError: The settings do not fit table or kernel.
        """
        tables.check_coverage(self.table, set(self.layers), stage=self._stage())
        if self.speaks:
            self.table.check_slots({index: layer.top_k for index, layer in self.layers.items()})
        self._choose_merge()
        self.signal = RowSignal(rows, device, may_skip=device.type == "cpu" and self.eager)
        policy = Sere(self.table.layers, self.config)
        for layer in self.layers.values():
            router = policy.bind(layer.shape, device)
            layer.prepared, layer.counters = router.prepared, router.counters
            layer.signal = self.signal
            self._keep_through_sleep(layer)
        # One of each shape: a backend may compile for a shape.
        for layer in {(layer.num_experts, layer.top_k): layer for layer in self.layers.values()}.values():
            _warm(layer)

    def describe(self) -> str:
        """Return the line that says that re-routing is active."""
        if not self.layers:
            return "this pipeline stage has no MoE layers and re-routes nothing; the others may"
        indices = sorted(self.layers)
        settings = self.config
        known = [layer.prepared for layer in self.layers.values() if layer.prepared is not None]
        backends = sorted({prepared.backend for prepared in known})
        return (
            f"re-routing {'active' if self.enabled else 'ready, but off'}: {len(indices)} MoE layers "
            f"({indices[0]} to {indices[-1]}), table {self.table.identity.name!r} ({self.table.metric}, "
            f"{self.table.fingerprint[:12]}), select_top_k={settings.select_top_k} "
            f"threshold={settings.threshold:g} min_active={settings.min_active} "
            f"targets={settings.targets} merge={settings.merge}, expert kernel {self.kernel or 'unknown'}, "
            f"backend {', '.join(backends)}"
        )

    def log_start(self) -> None:
        """Say that re-routing is active, and warn of what may surprise."""
        logger.info("sere: %s", self.describe())
        floor, asked = self.config.min_active, self.options.reroute.min_active
        if floor != asked:
            logger.warning(
                "sere: min_active is %d instead of %d: the expert kernel %s is not known to handle duplicate "
                "ids within one token\'s top-k, so every row needs as many distinct experts as it has slots",
                floor, asked, self.kernel or "in use",
            )  # fmt: skip
        for warning in features.surprises(self.vllm_config, self.config):
            logger.warning("sere: %s", warning)
        self.warn_of_settings()

    def warn_of_settings(self) -> None:
        """Warn where the settings that hold leave nothing to re-route."""
        if self.config.select_top_k == COUNT_ONLY_S or not self.layers:
            return
        shapes = [layer.shape for layer in self.layers.values()]
        for reason in Sere(self.table.layers, self.config).why_idle(shapes):
            logger.warning("sere: %s", reason)

    def expert_bytes(self) -> int | None:
        """Return the bytes of one routed expert's weights in this worker, or None if they cannot be told."""
        for layer in self.layers.values():
            return versions.expert_bytes(layer.runner, layer.num_experts)
        return None

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        self.counts = StepCounts()
        for layer in self.layers.values():
            if layer.counters is not None:
                layer.counters.zero_()

    def _stage(self) -> range | None:
        """Return the decoder layers that this process holds, or None if it holds all."""
        parallel = self.vllm_config.parallel_config
        if parallel.pipeline_parallel_size == 1:
            return None
        return range(*self.vllm_config.model_config.get_layers_start_end_indices(parallel))

    def _choose_merge(self) -> None:
        """Fit the settings to the expert kernels; where they differ, all get what all support."""
        for _, layer in sorted(self.layers.items()):
            kernel, monolithic = versions.expert_kernel(layer.runner)
            if monolithic:
                expert_kernels.refuse_monolithic(layer.name, versions.quant_method(layer.runner), kernel)
            self.kernel = versions.kernel_name(kernel)
            self.config = expert_kernels.fit_to_kernel(
                self.config, self.kernel, K=layer.top_k, merge_given=self.options.merge_given
            )

    def _keep_through_sleep(self, layer: RoutedLayer) -> None:
        """Make the layer's tensors buffers of its module: the sleep mode saves and restores those alone."""
        assert layer.prepared is not None
        assert layer.signal is not None
        # Until 0.20 the runner is no module; the one that owns it stands in the forward context by its name.
        known = getattr(self.vllm_config.compilation_config, "static_forward_context", {})
        owner = layer.runner if isinstance(layer.runner, torch.nn.Module) else known.get(layer.name)
        if not isinstance(owner, torch.nn.Module):
            logger.warning("sere: %s has no module to keep its tensors; do not use sleep level 2", layer.name)
            return
        own = {"counters": layer.counters, "budget": layer.signal.budget}
        for name, tensor in {**layer.prepared.tensors(), **own}.items():
            owner.register_buffer(f"sere_{name}", tensor, persistent=False)

    @property
    def speaks(self) -> bool:
        """Whether this worker writes to the log: of the ranks that hold the same layers, the first."""
        parallel = self.vllm_config.parallel_config
        return bool(parallel.rank % parallel.tensor_parallel_size == 0)

    @property
    def eager(self) -> bool:
        """Whether every step runs the layers' Python, neither compiled nor captured."""
        return int(self.vllm_config.compilation_config.mode or 0) == 0


def _warm(layer: RoutedLayer) -> None:
    """Run the operation once on padding, so that a backend compiles now and not in a request."""
    assert layer.prepared is not None
    ids = torch.zeros(1, layer.top_k, dtype=torch.int32, device=layer.prepared.device)
    budgets = torch.full((1,), PADDING, dtype=torch.int32, device=ids.device)
    batch = TokenBatch(ids, torch.zeros_like(ids, dtype=torch.float32), budgets)
    layer.prepared.route(batch, layer.counters)
