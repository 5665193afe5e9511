"""A model's weights as a decode step reads them, and the arithmetic that they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sere.structure import find_experts


@dataclass(frozen=True, slots=True)
class StepWeights:
    """All weights that are not a routed expert's, and the experts needed.

    Attributes:
        rest_bytes: Bytes of everything but the routed experts and the input embeddings.
        expert_bytes: Mean bytes of one routed expert.
        layers: Layers with routed experts.
        rest_params: Parameters behind ``rest_bytes``.
        expert_params: Mean parameters of one routed expert.
    """

    rest_bytes: int
    expert_bytes: float
    layers: int
    rest_params: int
    expert_params: float

    @classmethod
    def of(cls, model: Any) -> StepWeights:
        """Return those of a model of Transformers; its weights may be on the meta device."""
        layers = find_experts(model)
        sizes = {id(one): (one.numel() * one.element_size(), one.numel()) for one in model.parameters()}
        routed = [
            sizes.pop(id(one)) for layer in layers for one in layer.module.parameters() if id(one) in sizes
        ]
        # Of the input embeddings a step reads one row per token, unless they are the output's weights, too.
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        if inputs is not None and (outputs is None or outputs.weight is not inputs.weight):
            sizes.pop(id(inputs.weight), None)
        rest_bytes, rest_params = (sum(side) for side in zip((0, 0), *sizes.values(), strict=True))
        experts = sum(layer.num_experts for layer in layers)
        expert_bytes, expert_params = (sum(side) / experts for side in zip((0, 0), *routed, strict=True))
        return cls(rest_bytes, expert_bytes, len(layers), rest_params, expert_params)

    def read(self, experts: float) -> float:
        """Return the bytes of weights that a step reads.

        Args:
            experts: Distinct experts of a layer, as a mean over the layers.
        """
        return self.rest_bytes + self.layers * self.expert_bytes * experts

    def compute(self, rows: int, pairs: float) -> float:
        """Return the floating point operations of a step: two per parameter and row; attention is left out.

        Args:
            rows: Rows of the step.
            pairs: Pairs of a row and an expert that a layer computes, as a mean over the layers; without
                re-routing, rows times K.
        """
        return 2 * (rows * self.rest_params + self.layers * pairs * self.expert_params)

    def fewer_bytes(self, before: float, after: float) -> float:
        """Return how many times fewer bytes a step reads with ``after`` experts than with ``before``."""
        return self.read(before) / self.read(after)
