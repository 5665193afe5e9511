"""Change what is in a saved checkpoint: weights, the config, code beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def change_weights(path: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Replace a checkpoint's tensors, by name, with what ``change`` makes of them, in one file."""
    tensors: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (path / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(change(tensors), path / "model.safetensors", {"format": "pt"})
    return path


def drop(path: Path, part: str) -> Path:
    """Leave out the tensors with ``part`` in their names."""

    def without(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if part not in name}
        assert len(kept) < len(tensors), f"no tensor has {part} in its name: {', '.join(tensors)}"
        return kept

    return change_weights(path, without)


def change_json(file: Path, **values: Any) -> Path:
    """Set values of a JSON file; None takes one out. Return the folder."""
    found = json.loads(file.read_text(encoding="utf-8")) | values
    kept = {name: value for name, value in found.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")
    return file.parent
