"""Re-routing of one engine in one worker process: its layers, its settings, its rows' budgets."""

from __future__ import annotations

import logging
from typing import Any

import torch

from sere.config import RerouteConfig
from sere.errors import UnsupportedEngine
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start import features, tables, versions
from sere.integrations.vllm.step_counts import StepCounts
from sere.integrations.vllm.tiers import COUNT_ONLY_S
from sere.integrations.vllm.worker import expert_kernels, router_hook
from sere.integrations.vllm.worker.guard import Guard
from sere.integrations.vllm.worker.layer import RoutedLayer
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.integrations.vllm.worker.sleep import keep_through_sleep
from sere.policies.sere import Sere
from sere.table import SimilarityTable

# A child of vLLM's logger: its lines come out where and as the engine's own do, in every process.
logger = logging.getLogger("vllm.sere")


class WorkerState:
    """Re-routing of one engine in one worker.

    Args:
        plugin_config: The plug-in's settings.
        vllm_config: vLLM's ``VllmConfig``.
        table: The similarities, checked against the model's config.

    Attributes:
        layers: The MoE layers, by index, once the model is built.
        config: The current settings, fitted to the expert kernel.
        enabled: Whether re-routing is on at present.
        budgets: The budgets of the coming step's rows; None until the model is loaded.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        counts: Steps by what was done with them.
        guard: Says in the log why nothing was re-routed.
    """

    def __init__(self, plugin_config: PluginConfig, vllm_config: Any, table: SimilarityTable) -> None:
        self.plugin_config, self.vllm_config, self.table = plugin_config, vllm_config, table
        self.config: RerouteConfig = plugin_config.reroute
        self.enabled = plugin_config.enabled
        self.layers: dict[int, RoutedLayer] = {}
        self.budgets: RowBudgets | None = None
        self.kernel: str | None = None
        self.counts = StepCounts()
        self.guard = Guard(self.report, speaks=self.speaks)

    def add(self, runner: Any) -> None:
        """Add one MoE layer while the model is built.

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
        self.budgets = RowBudgets(rows, device, may_skip=device.type == "cpu" and self.eager)
        policy = Sere(self.table.layers, self.config)
        for layer in self.layers.values():
            router = policy.bind(layer.shape, device)
            layer.prepared, layer.counters = router.prepared, router.counters
            layer.budgets = self.budgets
            keep_through_sleep(layer, self._tensors(layer), self.vllm_config)
        # One of each shape: a backend may compile for a shape.
        for layer in {(layer.num_experts, layer.top_k): layer for layer in self.layers.values()}.values():
            layer.warm_up()

    def _tensors(self, layer: RoutedLayer) -> dict[str, torch.Tensor]:
        assert layer.prepared is not None
        assert layer.counters is not None
        assert self.budgets is not None
        return layer.prepared.tensors() | {"counters": layer.counters, "budgets": self.budgets.tensor}

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
        """Log that re-routing is active, and warn of what may surprise."""
        logger.info("sere: %s", self.describe())
        floor, asked = self.config.min_active, self.plugin_config.reroute.min_active
        if floor != asked:
            logger.warning(
                "sere: min_active is %d instead of %d: the expert kernel %s is not known to handle duplicate "
                "ids within one token's top-k, so every row needs as many distinct experts as it has slots",
                floor, asked, self.kernel or "in use",
            )  # fmt: skip
        for warning in features.surprises(self.vllm_config, self.config):
            logger.warning("sere: %s", warning)
        self.warn_of_settings()

    def warn_of_settings(self) -> None:
        """Warn if the current settings leave nothing to re-route."""
        if self.config.select_top_k == COUNT_ONLY_S or not self.layers:
            return
        shapes = [layer.shape for layer in self.layers.values()]
        for reason in Sere(self.table.layers, self.config).why_idle(shapes):
            logger.warning("sere: %s", reason)

    def settings_changed(self) -> None:
        """Judge what is counted from now on by itself."""
        self.counts.least_budget = None
        self.guard.restart()

    def read(self, reset: bool = False) -> dict[str, Any]:
        """Return what was counted, as `report`, and set all counters to zero if ``reset`` says so."""
        found = self.report()
        if reset:
            self.guard.carry(found)
            self.reset_counters()
        return found

    def report(self) -> dict[str, Any]:
        """Return settings and counts as plain numbers, which can be sent between processes."""
        counters = {layer: layer.counters for layer in self.layers.values() if layer.counters is not None}
        # One copy for all layers, because it waits for the device.
        copied = torch.stack(list(counters.values())).tolist() if counters else []
        return {
            "enabled": self.enabled,
            "settings": self.config.to_mapping(),
            "steps": self.counts.to_mapping(),
            "layers": [
                {"index": layer.index, "name": layer.name, "counters": sums}
                for layer, sums in zip(counters, copied, strict=True)
            ],
            "top_k": max((layer.top_k for layer in self.layers.values()), default=0),
            "num_experts": max((layer.num_experts for layer in self.layers.values()), default=0),
            "kernel": self.kernel,
            "expert_bytes": self.expert_bytes(),
        }

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
        """Fit the settings to the expert kernels: all layers get what all kernels support."""
        for _, layer in sorted(self.layers.items()):
            kernel, monolithic = versions.expert_kernel(layer.runner)
            if monolithic:
                expert_kernels.refuse_monolithic(layer.name, versions.quant_method(layer.runner), kernel)
            self.kernel = versions.kernel_name(kernel)
            self.config = expert_kernels.fit_to_kernel(
                self.config, self.kernel, K=layer.top_k, merge_given=self.plugin_config.merge_given
            )

    @property
    def speaks(self) -> bool:
        """Whether this worker writes to the log: of the ranks that hold the same layers, the first."""
        parallel = self.vllm_config.parallel_config
        return bool(parallel.rank % parallel.tensor_parallel_size == 0)

    @property
    def eager(self) -> bool:
        """Whether every step runs the layers' Python, neither compiled nor captured."""
        return int(self.vllm_config.compilation_config.mode or 0) == 0
