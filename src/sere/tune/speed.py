"""How many bytes of weights a decode step reads: what bounds its time where reading them takes longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sere.structure import find_experts
from sere.tune.simulate import Simulated


@dataclass(frozen=True, slots=True)
class StepBytes:
    """A model's weights as a decode step reads them: all that is not a routed expert, and the experts needed.

    Attributes:
        rest: Bytes of everything but the routed experts and the input embeddings.
        expert: Mean bytes of one routed expert.
        layers: Layers with routed experts.
    """

    rest: int
    expert: float
    layers: int

    @classmethod
    def of(cls, model: Any) -> StepBytes:
        """Return those of a model of Transformers; its weights may be on the meta device."""
        layers = find_experts(model)
        sizes = {id(one): one.numel() * one.element_size() for one in model.parameters()}
        routed = [sum(sizes.pop(id(one), 0) for one in layer.module.parameters()) for layer in layers]
        rest = sum(sizes.values())
        # Of the input embeddings a step reads one row per token, unless they are the output's weights, too.
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        if inputs is not None and (outputs is None or outputs.weight is not inputs.weight):
            rest -= sizes.get(id(inputs.weight), 0)
        return cls(rest, sum(routed) / sum(layer.num_experts for layer in layers), len(layers))

    def read(self, experts: float) -> float:
        """Return the bytes of a step whose layers read so many experts on average."""
        return self.rest + self.layers * self.expert * experts

    def speedup(self, before: float, after: float) -> float:
        """Return how many times fewer bytes a step reads."""
        return self.read(before) / self.read(after)


def fewest_for(speedup: float, simulated: Simulated, size: StepBytes) -> int:
    """Return the largest M at which a step reads so many times fewer bytes, or the smallest M there is.

    Args:
        speedup: Wanted, above 1.
        simulated: What the table says of these rows.
        size: The model's.
    """
    enough = [M for M, found in simulated.items() if size.speedup(found.before, found.after) >= speedup]
    return max(enough, default=min(simulated))
