"""Stand-ins for what vLLM hands the plug-in: requests, steps, configurations, layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sere.config import RerouteConfig
from sere.integrations.vllm import configure
from sere.integrations.vllm.engine_stats import merge_answers
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.tiers import OFF, PROTECTED, Allowed
from sere.integrations.vllm.worker.equip import methods_of
from sere.integrations.vllm.worker.guard import FIRST_LOOK
from sere.integrations.vllm.worker.state import WorkerState
from sere.integrations.vllm.worker.steps import Steps

ALL = Allowed.of([OFF], (1, PROTECTED))
"""What requests may ask for where a table has no tiers and settings forbid nothing."""


def new(name: str, prompt: int, tier: Any = None, *, images: bool = False) -> SimpleNamespace:
    extra = None if tier is None else {"sere": tier}
    return SimpleNamespace(
        req_id=name,
        prompt_token_ids=[0] * prompt,
        prompt_embeds=None,
        mm_features=[object()] * images,
        sampling_params=SimpleNamespace(extra_args=extra),
    )


def step(
    *,
    news: tuple[Any, ...] = (),
    cached: dict[str, int] | None = None,
    drafts: dict[str, list[int]] | None = None,
    finished: tuple[str, ...] = (),
) -> SimpleNamespace:
    """A scheduler's output; ``cached`` gives computed tokens by request."""
    cached = cached or {}
    return SimpleNamespace(
        scheduled_new_reqs=list(news),
        finished_req_ids=set(finished),
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached), num_computed_tokens=list(cached.values())
        ),
        scheduled_spec_decode_tokens=drafts or {},
    )


def engine_config(**parallel: Any) -> SimpleNamespace:
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel))


class Router:
    """vLLM's ``BaseRouter`` in miniature."""

    def __init__(self, K: int) -> None:
        self.top_k = K

    def _compute_routing(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class CPUUnquantizedExperts:
    """An expert kernel that takes an expert twice in a row, and pairs, by its name."""

    def apply(self, *_: Any, **__: Any) -> None:
        """Compute nothing: no layer of these tests is run."""
        raise NotImplementedError


def prepared(
    table: Any,
    known: dict[str, Any],
    runner: type = SimpleNamespace,
    *,
    parallel: dict[str, int] | None = None,
    kernel: object = None,
    select_top_k: int = 1,
    log_seconds: float = 0,
    stage: tuple[int, int] = (0, 2),
    requests: dict[str, Any] | None = None,
    moe: dict[str, Any] | None = None,
    gathers: bool | None = False,
    rows: int = 64,
    **settings: Any,
) -> WorkerState:
    """A state whose layers are stand-ins for vLLM's runners, prepared as after loading.

    ``moe`` is what vLLM's ``moe_config`` says besides; ``gathers``, whether a layer gathers rows first.
    """
    sizes = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "rank": 0} | (parallel or {})
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**sizes),
        compilation_config=SimpleNamespace(mode=0, static_forward_context=known),
        model_config=SimpleNamespace(get_layers_start_end_indices=lambda _parallel: stage),
    )
    reroute = RerouteConfig(select_top_k=select_top_k, **settings)
    plugin_config = PluginConfig(reroute=reroute, log_seconds=log_seconds, **(requests or {}))
    found = WorkerState(plugin_config, config, table)
    for index in set(table.layers) & set(range(*stage)):
        layer = runner()
        layer.layer_name, layer.router = f"model.layers.{index}.experts", Router(table.identity.slots[index])
        layer.moe_config = SimpleNamespace(num_experts=table.layers[index].num_experts, **(moe or {}))
        layer.do_naive_dispatch_combine = gathers
        layer.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=kernel))
        found.add(layer)
    found.prepare(torch.device("cpu"), rows)
    return found


class Ranks:
    """An engine of several workers that are called as vLLM calls them: what one raises, the caller gets.

    Args:
        states: Of its workers, in the order of their ranks, prepared.

    Attributes:
        methods: Of each worker by name, which tests may replace.
        calls: Arguments of the calls so far.
    """

    def __init__(self, *states: WorkerState) -> None:
        self.states = states
        self.methods = [methods_of(state) for state in states]
        self.calls: list[tuple[Any, ...]] = []

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        """Call a method of all workers."""
        self.calls.append(args)
        return [methods[method](*args) for methods in self.methods]


def change(state: WorkerState, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change settings of an engine of one worker as a user does."""
    return configure(Ranks(state), **changes)


class SmallEngine:
    """A model runner (V2) whose model is the layers of a state: it routes, and computes nothing.

    Args:
        state: Prepared.
        skipped: Indices of layers whose routers are not asked.
        ranks: How many ranks share the rows of a step.
    """

    def __init__(self, state: WorkerState, skipped: Sequence[int] = (), ranks: int = 1) -> None:
        self.state, self.skipped, self.ranks = state, skipped, ranks
        self.before_layers: Callable[[], object] = lambda: None
        self.steps = Steps(self, state)
        self.steps.watch()

    def prompts(self, *names: str, tier: Any = None, images: bool = False) -> None:
        """Run one step that reads prompts of three tokens."""
        news = tuple(new(name, 3, tier, images=images) for name in names)
        self._run(step(news=news), dict.fromkeys(names, 3))

    def decode(self, *names: str, steps: int = 1, computed: int = 3) -> None:
        """Run steps in which requests decode one token each, if three tokens of each are computed."""
        for _ in range(steps):
            self._run(step(cached=dict.fromkeys(names, computed)), dict.fromkeys(names, 1))

    def _run(self, output: Any, counts: dict[str, int]) -> None:
        output.counts = counts
        self.execute_model(output)

    def execute_model(self, output: Any) -> None:  # noqa: D102
        batch = self.prepare_inputs(output)
        self.before_layers()
        rows = torch.arange(-(-batch.num_tokens // self.ranks))[:, None]
        for index, layer in self.state.layers.items():
            if index not in self.skipped:
                E, K = layer.shape.num_experts, layer.shape.top_k
                ids = (5 * rows + torch.arange(K)).remainder(E).to(torch.int32)
                weights = torch.linspace(1.0, 0.5, K).expand(len(rows), -1)
                layer.route(ids, weights, torch.zeros(len(rows), E))

    def prepare_inputs(self, output: Any) -> Any:  # noqa: D102
        counts = np.array(list(output.counts.values()))
        return SimpleNamespace(
            req_ids=list(output.counts), num_scheduled_tokens=counts, num_tokens=int(counts.sum())
        )

    def _dummy_run(self) -> None:
        """Never run."""


NAMES = [f"r{i}" for i in range(6)]
"""Requests of `decode`."""

Start = Callable[..., SmallEngine]


def decode(engine: SmallEngine, steps: int = FIRST_LOOK, tier: Any = None) -> None:
    """Read the prompts of six requests, then decode them for some steps."""
    engine.prompts(*NAMES, tier=tier)
    engine.decode(*NAMES, steps=steps)


def why(engine: SmallEngine, *, reset: bool = False) -> str | None:
    """Return why an engine re-routed nothing, as its statistics say."""
    return merge_answers([engine.state.read(reset)]).nothing_changed
