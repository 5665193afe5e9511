"""Routing rules, bound and called as engines call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sere.identity import ModelIdentity
from sere.policies import POLICIES, LayerRouter, LayerShape, Policy
from sere.policies.spec import parse_spec
from sere.reroute import COUNTERS, Routing, TokenBatch
from sere.similarity.layer import LayerSimilarity
from sere.table import SimilarityTable

CPU = torch.device("cpu")
# Each rule of the registry as it would be typed.
EXAMPLES = [f"{name}:{kind.example}" if kind.example else name for name, kind in POLICIES.items()]


def example(name: str, num_experts: int, **options: Any) -> Policy:
    """A rule with the options of its own example, and the table of `table_of_layer` if it needs one."""
    spec = parse_spec(f"{name}:{POLICIES[name].example}")
    return spec.policy_class.from_options({**spec.options, **options}, table_of_layer(num_experts))


def table_of_layer(num_experts: int) -> SimilarityTable:
    """A table of one layer of so many experts, with random similarities."""
    generator = torch.Generator().manual_seed(num_experts)
    matrix = torch.rand(num_experts, num_experts, generator=generator).fill_diagonal_(1.0)
    return one_layer(LayerSimilarity(matrix))


def one_layer(layer: LayerSimilarity) -> SimilarityTable:
    """A table whose layer 0 is the given one."""
    identity = ModelIdentity(
        name="one layer",
        architecture={"model_type": "any_moe"},
        layer_names={0: "model.layers.0.mlp.experts"},
        experts={0: layer.num_experts},
        slots={0: 1},
    )
    return SimilarityTable(layers={0: layer}, identity=identity, metric="projection")


def router(policy: Policy, num_experts: int, top_k: int) -> LayerRouter:
    """The rule bound to layer 0 on the CPU."""
    return policy.bind(LayerShape(0, num_experts, top_k), CPU)


def route(
    policy: Policy, num_experts: int, ids: Tensor, weights: Tensor, **rest: Any
) -> tuple[Routing, Mapping[str, int]]:
    """Route one first step of layer 0; return the routing and the counters by name."""
    bound = router(policy, num_experts, ids.shape[-1])
    routing = bound(TokenBatch(ids, weights, **rest))
    return routing, counted(bound)


def counted(bound: LayerRouter) -> Mapping[str, int]:
    """A router's counters by name."""
    return dict(zip(COUNTERS, bound.counters.tolist(), strict=True))


def named_rule(text: str, num_experts: int) -> Policy:
    """The rule that a setting names; with similarities for layer 0 if it needs them."""
    spec = parse_spec(text)
    return example(spec.name, num_experts, **spec.options)


@st.composite
def router_steps(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """A router's choice: ids, weights (normalized or not, slots shuffled), logits, and E of up to 9."""
    E = draw(st.integers(2, 9))
    K = draw(st.integers(1, min(4, E)))
    T = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(T, E, generator=generator, dtype=torch.float64)
    weights, ids = logits.softmax(1).topk(K, dim=1)
    if draw(st.booleans()):
        weights = weights / weights.sum(1, keepdim=True)
    order = torch.rand(T, K, generator=generator).argsort(1)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    kind = draw(st.sampled_from([torch.int32, torch.int64]))
    return ids.gather(1, order).to(kind), weights.gather(1, order).to(dtype), logits, E


# Three rows, weights of a softmax router without normalization. By weight: row 0 wants 0, 1, 2; row 1 wants
# 3, 1, 0; row 2 wants 0, 4, 5.
PROBABILITIES = torch.tensor(
    [
        [0.40, 0.30, 0.15, 0.05, 0.04, 0.06],
        [0.20, 0.25, 0.05, 0.35, 0.10, 0.05],
        [0.45, 0.02, 0.03, 0.10, 0.25, 0.15],
    ],
    dtype=torch.float64,
)


def top_slots(probabilities: Tensor = PROBABILITIES, k: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and weights of a router that takes the k most probable experts."""
    weights, ids = probabilities.topk(k, dim=1)
    return ids, weights.float()


def route_worked(policy: Policy, **rest: Any) -> tuple[Routing, Mapping[str, int]]:
    """Route the worked example of three rows and six experts."""
    return route(policy, 6, *top_slots(), router_scores=PROBABILITIES.log(), **rest)


def dense(routing: Routing, row: int, experts: int = 6) -> list[float]:
    """A row's weight for each expert."""
    weights = torch.zeros(experts, dtype=torch.float64)
    return weights.scatter_add(0, routing.ids[row].long(), routing.weights[row].double()).tolist()
