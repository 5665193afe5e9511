"""Small tables for the tests of this folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sere.errors import TableError
from sere.identity import ModelIdentity
from sere.similarity import LayerSimilarity
from sere.table import RoutingSample, SimilarityTable, Tier

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


def sample(*, E: int = 5, K: int = 2, lengths: tuple[int, ...] = (3, 1, 4), seed: int = 0) -> RoutingSample:
    """Return a routing sample of `identity`'s model: distinct experts in each row."""
    generator = torch.Generator().manual_seed(seed)
    T = sum(lengths)
    return RoutingSample(
        ids={i: torch.rand(T, E, generator=generator).argsort(dim=1)[:, :K].short() for i in (1, 3)},
        weights={i: torch.rand(T, K, generator=generator).add(0.05).half() for i in (1, 3)},
        starts=torch.tensor([0, *lengths]).cumsum(0).int(),
        energy={i: torch.rand(E, generator=generator) + 0.5 for i in (1, 3)},
    )


def tiers() -> dict[str, Tier]:
    """Return two tiers: points and a layer that differs, and a share with its own S and ρ."""
    evidence = {"loss": {"16": [0.01, 0.005, 0.02]}, "after": {"16": 3.5}}
    return {
        "balanced": Tier("balanced", ((1, 2), (8, 4)), {3: 5}, evidence=evidence),
        "fast": Tier("fast", 0.5, select_top_k=2, threshold=0.25),
    }


def refuses(text: str) -> Any:
    """Expect exactly this text within a TableError."""
    return pytest.raises(TableError, match=re.escape(text))


def saved(folder: Path, **changes: Any) -> Path:
    """Save a table and return its path."""
    path = folder / "table.safetensors"
    table(**changes).save(path)
    return path


def refuses_header(folder: Path, metadata: dict[str, str | None], text: str) -> None:
    """Expect that a saved table whose header was changed is refused, with the file's name and the text."""
    path = saved(folder)
    rewrite(path, **metadata)
    with refuses(text) as caught:
        SimilarityTable.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, **metadata: str | None) -> None:
    """Change a saved file's tensors or header behind the table's back; None removes an entry."""
    named = load_file(path) | (tensors or {})
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata()) | metadata
    kept = {name: value for name, value in header.items() if value is not None}
    save_file({name: t for name, t in named.items() if t is not None}, path, metadata=kept)


def rewrite_as(path: Path, version: int) -> None:
    """Make of a saved file without tiers and routing sample one of format version 1 or 2."""
    rewrite(path, format_version=str(version), tiers=None, additions=None)
