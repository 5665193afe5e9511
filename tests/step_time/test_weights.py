"""A model's weights as a decode step reads them, and the arithmetic that they cost."""

from __future__ import annotations

import torch

from sere.step_time import StepWeights
from sere.structure import find_experts
from tests.support.tiny import tiny_model


def test_weights_are_counted_once_and_by_kind() -> None:
    """Routed experts are apart, and of the input embeddings a step reads next to nothing."""
    model = tiny_model("qwen3_moe").to(torch.bfloat16)
    found = StepWeights.of(model)
    layers = find_experts(model)
    routed = sum(one.numel() for layer in layers for one in layer.module.parameters())
    experts = sum(layer.num_experts for layer in layers)
    everything = sum(one.numel() for one in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    assert found.expert_params * experts == routed
    assert found.rest_params == everything - routed - embeddings
    assert (found.rest_bytes, found.expert_bytes) == (2 * found.rest_params, 2 * found.expert_params)
    assert found.layers == len(layers)


def test_bytes_and_operations_of_a_step() -> None:
    """Distinct experts are read once a layer; each pair and each row costs two operations a parameter."""
    weights = StepWeights(100, 10.0, 2, 50, 5.0)
    assert weights.read(3) == 100 + 2 * 10 * 3
    assert weights.compute(4, 8) == 2 * (4 * 50 + 2 * 8 * 5)
    assert weights.fewer_bytes(10, 0) == 3.0
