"""Re-routing of one engine in one worker process: its layers, its settings, its rows' budgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sere.config import MOST_INT, RerouteConfig
from sere.errors import UnsupportedEngine
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.start import tables
from sere.integrations.vllm.step_counts import StepCounts
from sere.integrations.vllm.worker import expert_kernels, flat_experts, freed_slots, router_hook
from sere.integrations.vllm.worker.facts import facts_of, stage_of
from sere.integrations.vllm.worker.flat_operator import flatten_layers
from sere.integrations.vllm.worker.guard import Guard
from sere.integrations.vllm.worker.layer import RoutedLayer, warm_up
from sere.integrations.vllm.worker.proposal import Fingerprint, Proposal, propose
from sere.integrations.vllm.worker.row_budgets import RowBudgets
from sere.integrations.vllm.worker.rules import Rules, layer_settings
from sere.integrations.vllm.worker.step_limits import StepLimits
from sere.policies.base import LayerShape, Policy
from sere.policies.sere import SereRouter
from sere.reroute import COUNTERS
from sere.structure import is_of_other_tower
from sere.table import SimilarityTable


class WorkerState:
    """Re-routing of one engine in one worker.

    Args:
        plugin_config: The plug-in's settings.
        vllm_config: vLLM's ``VllmConfig``.
        table: The similarities, checked against the model's config.

    Attributes:
        given: The engine's settings as they were given; the table's tier may say the rest.
        sere: The engine's own rule with its current settings, fitted to the expert kernel.
        policy: The rule that routes at present: ``sere``, or what `routed_by` has put in its place.
        enabled: Whether re-routing is on at present.
        count_only: Whether experts are counted and none is re-routed at present.
        layers: The MoE layers, by index, once the model is built.
        other_experts: Whether the model has other experts for images or sound, which then get their rows.
        budgets: The budgets of the coming step's rows; None until the model is loaded.
        limits: S and M of the layers in the coming step; None until the model is loaded.
        kernel: Class name of the expert kernel, or None where it cannot be told.
        counts: Steps by what was done with them.
        flat: Whether steps compute only the pairs of a row and an expert that carry weight.
        skips_from: From how many rows on some layer skips slots that are given up, where none computes pairs.
        rest_bytes: Of the weights that are no routed experts', as `facts.rest_bytes` returns them.
        guard: Says in the log why nothing was re-routed.
        lock: Held by a step while it runs, and by whatever reads or changes what steps count.
        counters: ``[layers, len(COUNTERS)]``, int64, a row for each layer; None until the model is loaded.
        fingerprint: Of what holds at present, to be compared between ranks.

    Raises:
        ConfigError: The settings do not fit the table.
    """

    def __init__(self, plugin_config: PluginConfig, vllm_config: Any, table: SimilarityTable) -> None:
        self.plugin_config, self.vllm_config, self.table = plugin_config, vllm_config, table
        self.rules = Rules(table, plugin_config)
        self.given = plugin_config.reroute
        self.sere = self.rules.of(self.given)
        self.policy: Policy = self.sere
        self.other_experts = False
        self.enabled, self.count_only = plugin_config.enabled, plugin_config.count_only
        self.layers: dict[int, RoutedLayer] = {}
        self.budgets: RowBudgets | None = None
        self.limits: StepLimits | None = None
        self.kernel: str | None = None
        self.flat = flat_experts.FlatKernels(self.given.flatten, self.speaks)
        self.skips_from = MOST_INT
        self.rest_bytes: int | None = None
        self.counts, self.lock = StepCounts(), threading.RLock()
        self.guard = Guard(self.report, speaks=self.speaks)
        self.counters: Tensor | None = None
        self.fingerprint: Fingerprint = {"common": "", "layers": {}}
        self._routers: dict[int, SereRouter] = {}

    @property
    def config(self) -> RerouteConfig:
        """The current settings of ``sere``."""
        return self.sere.config

    @property
    def backends(self) -> list[str]:
        """Names of the backends that run ``sere``."""
        return sorted({router.prepared.backend for router in self._routers.values()})

    def add(self, runner: Any) -> None:
        """Add one MoE layer while the model is built; experts for images or sound are left alone.

        Raises:
            TableError: The table does not know this layer.
            UnsupportedEngine: The layer cannot be re-routed.
        """
        if is_of_other_tower(str(runner.layer_name)):
            self.other_experts = True
            return
        layer = RoutedLayer(runner)
        index = layer.shape.index
        tables.check_layer(self.table, index, layer.name, E=layer.shape.num_experts)
        other = self.layers.setdefault(index, layer)
        if other is not layer:
            raise UnsupportedEngine(
                f"{other.name} and {layer.name} are both layer {index}; a model that contains two language "
                "models cannot be re-routed"
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
        tables.check_coverage(self.table, set(self.layers), stage=stage_of(self.vllm_config))
        if self.speaks:
            self.table.check_slots({index: layer.shape.top_k for index, layer in self.layers.items()})
        self._fit_to_kernels()
        ranks = self.flat.ranks = int(self.vllm_config.parallel_config.tensor_parallel_size)
        for layer in self.layers.values():
            layer.find_share(self.rank % ranks, allow_untested=self.plugin_config.allow_untested)
        # Ranks that share the rows of a step have as many each, so that a few are added.
        self.budgets = RowBudgets(rows + ranks - 1, device)
        self.limits = StepLimits(len(self.layers), self.rules.tiers, device)
        # Tensors made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            self.counters = torch.zeros(len(self.layers), len(COUNTERS), dtype=torch.int64, device=device)
        for row, (index, layer) in enumerate(self.layers.items()):
            layer.prepare(self.budgets, self.counters[row], count_experts=self.plugin_config.count_experts)
            self._routers[index] = self.sere.bind(layer.shape, device)
            self._routers[index].prepared.read_limits_from(self.limits.tensor[row])
            layer.take(self._routers[index])
        flatten_layers(self.layers, self.rules.kernels, self.budgets, self.flat)
        freed_slots.skip_freed_slots(self.layers, self.rules, self.given, self.vllm_config, rows)
        self.skips_from = freed_slots.skips_from(self.layers.values(), self.config)
        if self.flat.why_not is not None and self.skips_from == MOST_INT:
            self.rules.leave_out_gains()
        self.commit(self.propose(self.given, enabled=self.enabled, count_only=self.count_only))
        warm_up(self.layers.values())

    def propose(self, given: RerouteConfig, *, enabled: bool, count_only: bool) -> Proposal:
        """Prepare changed settings on the host: nothing is changed, and nothing is left that can fail.

        Args:
            given: Settings that differ from ``given`` only in what `PreparedLayer.update` can write.
            enabled: Whether re-routing is on.
            count_only: Whether experts are counted and none is re-routed.

        Raises:
            ConfigError: They do not fit the table.
        """
        return propose(self.rules, given, (enabled, count_only), now=self.sere, routers=self._routers)

    def commit(self, proposal: Proposal) -> None:
        """Take prepared settings from the next step on; graphs and compiled code read what is written."""
        assert self.limits is not None
        sere = proposal.sere
        for index, router in self._routers.items():
            if index in proposal.layers:
                router.prepared.update(proposal.layers[index])
            router.prepared.config = sere.config
        self.limits.write(proposal.limits, proposal.limits_of_all_slots, proposal.exact_rows)
        if self.policy is self.sere:
            self.policy = sere
        self.given, self.sere, self.fingerprint = proposal.given, sere, proposal.fingerprint
        self.enabled, self.count_only = proposal.enabled, proposal.count_only
        self.counts.least_budget = None
        self.guard.restart()

    @property
    def shapes(self) -> list[LayerShape]:
        """What rules need to know about the layers."""
        return [layer.shape for layer in self.layers.values()]

    @contextmanager
    def routed_by(self, policy: Policy) -> Iterator[None]:
        """Let another rule route all layers, with counters of 0; which rows it may change stays the engine's.

        Args:
            policy: The rule.

        Raises:
            UnsupportedEngine: Compiled code or captured graphs would not run it, the expert kernel is not
                known to support its result, or it needs scores that a layer's router does not have.
            SereError: It cannot be bound to a layer.
        """
        assert self.budgets is not None
        if not self.eager:
            raise UnsupportedEngine(
                f"{policy.name}: this engine runs compiled code, whose routing rule cannot be replaced; "
                "start it with enforce_eager=True"
            )
        if policy.changes_routing:
            expert_kernels.check_duplicates(policy.name, self.kernel)
        try:
            for layer in self.layers.values():
                layer.bind(policy, self.budgets.tensor.device)
            self.policy = policy
            self._restart_counting()
            yield
        finally:
            for index, router in self._routers.items():
                self.layers[index].take(router)
            self.policy = self.sere
            self._restart_counting()

    def _restart_counting(self) -> None:
        self.reset_counters()
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
        layers = list(self.layers.values())
        # One copy for all layers, because it waits for the device.
        copied = [] if self.counters is None else self.counters.tolist()
        return {
            "fingerprint": self.fingerprint,
            "data_parallel_rank": self.data_parallel_rank,
            "enabled": self.enabled,
            "count_only": self.count_only,
            "settings": (self.config.to_mapping if self.policy is self.sere else self.policy.describe)(),
            "request_tiers": list(self.rules.tiers),
            "steps": self.counts.to_mapping(),
            "layers": [
                layer.describe() | {"counters": sums, "settings": layer_settings(self.sere, layer.shape)}
                for layer, sums in zip(layers, copied, strict=True)
            ],
            "flatten": self.flat.report(),
            "kernel": self.kernel,
            "rest_bytes": self.rest_bytes,
            **facts_of(layers, self.table),
        }

    def reset_counters(self) -> None:
        """Set all counters to zero."""
        self.counts = StepCounts()
        if self.counters is not None:
            self.counters.zero_()
        for layer in self.layers.values():
            layer.reset()

    def _fit_to_kernels(self) -> None:
        """Fit the settings to the expert kernels: all layers get what all kernels support.

        Raises:
            UnsupportedEngine: A layer routes inside its kernel.
            ConfigError: A kernel does not support the settings.
        """
        names = [expert_kernels.kernel_of(layer) for _, layer in sorted(self.layers.items())]
        self.kernel = names[-1] if names else None
        self.rules.kernels.update(names)
        self.policy = self.sere = self.rules.of(self.given)

    @property
    def rank(self) -> int:
        """The worker's number in its engine."""
        return int(self.vllm_config.parallel_config.rank)

    @property
    def data_parallel_rank(self) -> int:
        """Which of several data-parallel engines the worker is part of."""
        return int(getattr(self.vllm_config.parallel_config, "data_parallel_rank", 0))

    @property
    def speaks(self) -> bool:
        """Whether this worker writes to the log: of the ranks that hold the same layers, the first."""
        return self.rank % int(self.vllm_config.parallel_config.tensor_parallel_size) == 0

    @property
    def eager(self) -> bool:
        """Whether every step runs the layers' Python, neither compiled nor captured."""
        return int(self.vllm_config.compilation_config.mode or 0) == 0
