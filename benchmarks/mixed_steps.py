"""How many experts a step reads whose decoded rows come with rows of prompts: before and after re-routing.

``python benchmarks/mixed_steps.py`` writes one line to ``benchmarks/results/mixed_steps.jsonl``. Routing of
the bundled model: the rows that decode are one token each of as many texts, the others follow each other in
further texts, as a scheduler's chunk of prompts does. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sere.bundled import model_path
from sere.config import RerouteConfig
from sere.eval.tasks import calibration_texts
from sere.integrations.vllm.tiers import PROTECTED
from sere.provenance import provenance
from sere.reroute import COUNTERS, TokenBatch, prepare_layer
from sere.reroute.constants import LAYER_BUDGET
from sere.similarity.layer import LayerSimilarity
from sere.structure import find_experts

DECODED = (1, 8, 16, 32, 64)
LOADS = (0, 1, 2, 4, 8, 16)
"""Slots of protected rows for each expert of a layer."""


def main() -> None:
    """Simulate, and append the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mixed_steps.jsonl"))
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20, help="simulated steps of each case")
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path(), experts_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    texts = [tokenizer(text)["input_ids"] for text in calibration_texts(count=options.texts)]
    rows = [
        {"rows": B, "load": load, **_case(routing, B, load, options.steps)}
        for routing in [_routing(model, texts)]
        for B in DECODED
        for load in LOADS
    ]
    record = {
        "format": "sere-mixed-steps-1",
        "unit": "distinct experts per layer and step",
        "config": {"texts": options.texts, "steps": options.steps, "active_experts": "auto", "seed": 0},
        "cases": rows,
        "provenance": provenance(),
    }
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    for row in rows:
        print(f"B={row['rows']:3d} load={row['load']:2d}: {row['before']:.1f} > {row['after']:.1f}")


def _routing(model: Any, texts: list[list[int]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Ids and weights of every text's tokens, by layer."""
    layers = find_experts(model)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    hooks = [
        layer.module.register_forward_pre_hook(
            lambda _, args, mine=mine: mine.append((args[1].clone(), args[2].float()))
        )
        for layer, mine in zip(layers, found, strict=True)
    ]
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return found


def _case(routing: list[list[tuple[Tensor, Tensor]]], rows: int, load: int, steps: int) -> dict[str, float]:
    """Mean experts before and after over layers and steps."""
    generator = torch.Generator().manual_seed(0)
    E, K = 96, routing[0][0][0].shape[1]
    protected = -(-load * E // K)
    similarity = torch.ones(E, E)
    counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
    prepared = prepare_layer(LayerSimilarity(similarity), RerouteConfig(), top_k=K)
    budgets = torch.tensor([LAYER_BUDGET] * rows + [PROTECTED] * protected, dtype=torch.int32)
    for layer in routing:
        for _ in range(steps):
            order = torch.randperm(len(layer), generator=generator).tolist()
            picked = [int(torch.randint(len(layer[t][0]), (), generator=generator)) for t in order[:rows]]
            parts = [
                tuple(one[at : at + 1] for one in layer[t]) for t, at in zip(order, picked, strict=False)
            ]
            chunk = [torch.cat([layer[t][i] for t in order[rows:]])[:protected] for i in (0, 1)]
            ids, weights = (torch.cat([*(part[i] for part in parts), chunk[i]]) for i in (0, 1))
            prepared.route(TokenBatch(ids, weights, budgets), counters)
    sums = dict(zip(COUNTERS, counters.tolist(), strict=True))
    return {
        "protected_rows": protected,
        "before": sums["distinct_before"] / sums["steps"],
        "after": sums["distinct_after"] / sums["steps"],
    }


if __name__ == "__main__":
    main()
