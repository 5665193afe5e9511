"""The trained model that ships with the package."""

from __future__ import annotations

from pathlib import Path

NAME = "abacus"

BUNDLED = "bundled"
"""What stands for it where a model is named."""


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
