"""Small tables for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sere.identity import ModelIdentity
from sere.similarity import LayerSimilarity
from sere.table import SimilarityTable

ARCHITECTURE = {"model_type": "any_moe", "hidden_size": 32, "layers": 4, "expert_width": 16}


def identity(*, E: int = 5, K: int = 2, **changes: Any) -> ModelIdentity:
    """Return the identity of a model of E experts per layer with MoE layers 1 and 3."""
    names = {index: f"model.layers.{index}.mlp.experts" for index in (1, 3)}
    values: dict[str, Any] = {"name": "tiny", "architecture": ARCHITECTURE, "layer_names": names} | changes
    sizes = {
        "experts": dict.fromkeys(values["layer_names"], E),
        "slots": dict.fromkeys(values["layer_names"], K),
    }
    return ModelIdentity(**(sizes | values))


def matrix(seed: int, E: int = 5) -> Tensor:
    """Return a symmetric similarity matrix."""
    values = torch.rand(E, E, generator=torch.Generator().manual_seed(seed))
    return ((values + values.T) / 2).fill_diagonal_(1)


def table(*, scale: bool = False, **changes: Any) -> SimilarityTable:
    """Return a table of `identity`'s model."""
    factors = 2 * matrix(7) if scale else None
    values: dict[str, Any] = {
        "layers": {index: LayerSimilarity(matrix(index), factors) for index in (1, 3)},
        "identity": identity(),
        "metric": "cka",
        "metric_parameters": {"kernel": "rbf", "window": 128, "bandwidth": 1.0},
        "calibration_tokens": 51_200,
        "data_digest": "cd" * 32,
        "seed": 0,
        "provenance": {"versions": {"torch": "2.9"}, "commit": "0" * 40},
    }
    return SimilarityTable(**(values | changes))
