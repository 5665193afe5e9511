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


def knows_tasks(model: str | Path) -> bool:
    """Say whether a model can be asked sere's own tasks: it has the bundled model's tokenizer.

    The tasks have a notation of their own. So it is the tokens that tell, whatever architecture and sizes a
    model has. Its weights may not have learned the tasks.

    Args:
        model: ``BUNDLED``, or a checkpoint's folder. A hub name is not looked up.
    """
    if model == BUNDLED:
        return True
    folder, own = Path(model), model_path()
    if folder.is_dir() and folder.resolve() == own.resolve():
        return True
    return bool(_read(folder, "tokenizer.json", "model") == _read(own, "tokenizer.json", "model"))


def _read(folder: Path, name: str, key: str) -> Any:
    """Return a value of a JSON file, or None where there is no such file or value."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None
