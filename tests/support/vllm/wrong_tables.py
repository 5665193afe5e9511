"""Tables that do not fit, made from the one of `tests.support.vllm.models.save_model`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sere.table import SimilarityTable
from tests.support.vllm.models import table_of


def cut_off(model: Path, folder: Path) -> Path:
    """Write the first half of a model's table."""
    content = table_of(model).read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "cut.safetensors"


def without_layer(model: Path, folder: Path) -> Path:
    """Write a model's table without its last layer."""
    table = SimilarityTable.load(table_of(model))
    fields = ("layer_names", "experts", "slots")
    shorter = {name: dict(list(getattr(table.identity, name).items())[:-1]) for name in fields}
    identity = dataclasses.replace(table.identity, **shorter)
    layers = {index: table.layers[index] for index in identity.layer_names}
    dataclasses.replace(table, layers=layers, identity=identity).save(folder / "short.safetensors")
    return folder / "short.safetensors"
