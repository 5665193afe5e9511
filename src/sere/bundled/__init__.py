"""The trained model that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "abacus"

BUNDLED = "bundled"
"""The name that commands and functions accept for it."""


def model_path() -> Path:
    """Return the folder of the bundled model; ``from_pretrained`` takes it as it is.

    Raises:
        FileNotFoundError: The installation lacks the model's weights; the text says what to do.
    """
    folder = Path(__file__).parent / NAME
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: install sere again, or train the model with "
            "`python -m recipe.train` and `python -m recipe.export` in a checkout"
        )
    return folder


def is_bundled(folder: Path) -> bool:
    """Say whether a folder holds the bundled model or a copy of it, trained further or not.

    What counts is what its own tasks need: the same sizes, and a tokenizer of the same tokens.
    """
    own = model_path()
    if folder.resolve() == own.resolve():
        return True
    if any(_read(folder, "config.json", key) != _read(own, "config.json", key) for key in _SIZES):
        return False
    return bool(_read(folder, "tokenizer.json", "model") == _read(own, "tokenizer.json", "model"))


_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "moe_intermediate_size", "vocab_size")


def _read(folder: Path, name: str, key: str) -> Any:
    """Return a value of a JSON file, or None where there is no such file or value."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
