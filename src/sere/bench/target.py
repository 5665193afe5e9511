"""What is timed: a model, its similarities, and the tokens that it decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sere.bench.shapes import shape_config
from sere.checkpoints import choose_experts_implementation
from sere.errors import InputError
from sere.provenance import versions
from sere.similarity.layer import LayerSimilarity

if TYPE_CHECKING:
    from sere.table import SimilarityTable


@dataclass(frozen=True, slots=True)
class Subject:
    """A model ready to be timed.

    Attributes:
        model: In evaluation mode, on its device.
        table: Similarities of its experts, measured or random.
        described: What a reader of the record must know of both; JSON-ready.
    """

    model: Any
    table: SimilarityTable
    described: Mapping[str, Any]


def random_model(
    shape: str,
    *,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    experts_implementation: str | None = None,
    seed: int = 0,
) -> Any:
    """Return a model with a published model's layer shape and random weights.

    Args:
        shape: One of ``sere.bench.shapes.SHAPES``.
        layers: Number of layers; all if None.
        dtype: Of the weights.
        device: Where the weights are made and stay.
        experts_implementation: Transformers' name; None for ``eager`` on a CPU and its own choice elsewhere.
        seed: Of the weights.

    Raises:
        InputError: The shape is unknown or ``layers`` out of range.
    """
    from transformers import AutoModelForCausalLM

    config = shape_config(shape, layers=layers)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            experts_implementation=choose_experts_implementation(experts_implementation, device),
        )
    return model.eval()


def random_table(model: Any, *, seed: int = 0, factors: bool = False) -> SimilarityTable:
    """Return a table of symmetric random similarities for a model.

    Which expert replaces which does not change how long a step takes, so a timing needs no calibration.

    Args:
        model: A model with experts modules.
        seed: Of the similarities.
        factors: Whether there are factors, as calibrated tables have them. Similarities are in [0, 0.2] then,
            as those of trained models are (docs/measurements.md, "All rules"), so that ``min_gain`` leaves
            out slots; else in [0, 1].

    Raises:
        UnsupportedModel: The model has no experts modules that can be re-routed.
    """
    from sere.structure import find_experts, identify
    from sere.table import SimilarityTable

    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for layer in find_experts(model):
        upper = torch.rand(layer.num_experts, layer.num_experts, generator=generator, device="cpu").triu(1)
        between = (0.2 if factors else 1.0) * (upper + upper.T)
        similarity = between + torch.eye(layer.num_experts, device="cpu")
        layers[layer.index] = LayerSimilarity(similarity, similarity.sqrt() if factors else None)
    return SimilarityTable(
        layers,
        identify(model),
        metric="random",
        metric_parameters={},
        calibration_tokens=0,
        data_digest="",
        seed=seed,
        provenance={"versions": versions()},
    )


def random_tokens(model: Any, B: int, length: int, *, seed: int = 0) -> Tensor:
    """Return random token ids, ``[B, length]``, on the model's device: the same for every setting.

    Raises:
        InputError: A size is not positive.
    """
    if B < 1 or length < 1:
        raise InputError(f"tokens: expected a batch and a length of at least 1, got {B} and {length}")
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.get_input_embeddings().num_embeddings
    return torch.randint(0, vocab_size, (B, length), generator=generator, device="cpu").to(model.device)
