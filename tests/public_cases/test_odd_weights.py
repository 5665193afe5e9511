"""A row that went wrong, and gates that no router should give: the other rows are served as ever."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sere
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

IDS = torch.tensor([[0, 1, 2], [3, 4, 5], [1, 3, 0]])
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
SIMILARITY = torch.full((6, 6), 0.5).fill_diagonal_(1.0)


def results(weights: torch.Tensor, **options: Any) -> list[tuple[Any, str]]:
    """Ids and weights, as text, for NaN is not equal to itself, of every backend that a CPU has."""
    settings = {"active_experts": 0} | options
    every = [
        sere.reroute(IDS, weights, SIMILARITY, backend=backend, **settings)
        for backend in ("reference", "torch", "cpu")
    ]
    return [(routing.ids.tolist(), repr(routing.weights.tolist())) for routing in every]


def test_nan_in_a_row_gives_one_result_on_every_backend() -> None:
    """That row keeps its experts; the others are routed as if it were not there."""
    weights = WEIGHTS.clone()
    weights[1] = math.nan
    reference, torch_backend, cpu = results(weights)
    assert reference == torch_backend == cpu
    assert reference[0] == [[0, 1, 0], [3, 4, 5], [1, 0, 0]]


@pytest.mark.parametrize("large", [1e4, 1e13, 1e30, math.inf])
def test_huge_gates_give_one_result_on_every_backend(large: float) -> None:
    """Also where the primary set is filled up, by sums of powers of the gates."""
    reference, torch_backend, cpu = results(WEIGHTS * large, active_experts=4)
    assert reference == torch_backend == cpu
    assert len({expert for row in reference[0] for expert in row}) == 4


def test_a_request_whose_hidden_states_are_nan_leaves_the_others_alone() -> None:
    """In a model: one embedding is broken; the other prompts get the tokens that they get without it."""
    model = tiny_model("qwen3_moe")
    texts = ["The quick brown fox jumps over the lazy dog."]
    table = sere.calibrate(model, tiny_tokenizer(), texts * 4, max_tokens=64, seq_len=16, progress=False)
    prompts = torch.arange(3, 43).view(8, 5)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[40] = math.nan
    with sere.apply(model, table, active_experts=0):
        # The broken row gives token 0 for ever, which its experts would not have voted with.
        with_it = model.generate(prompts, max_new_tokens=6, do_sample=False)
        without = model.generate(prompts[:7], max_new_tokens=6, do_sample=False)
    assert torch.equal(with_it[:7], without)
