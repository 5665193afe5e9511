"""Find a checkpoint and load it whole, with its tokenizer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from sere.calibrate.settings import Progress
from sere.calibrate.skeleton import loading_bar, model_class
from sere.errors import InputError, MissingDependency

# Loading and calibrating needs more than the weights: activations, one chunk of outputs, the system.
_SHARE_OF_MEMORY = 0.7


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a checkpoint; a hub name is looked up (and downloaded) in the hub's cache.

    Raises:
        InputError: It is no path, or there is neither a folder nor a hub model of this name.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"model: expected a model, a checkpoint folder or a hub name, got {type(path).__name__}; "
            "the model goes first, then the tokenizer"
        )
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists() or folder.is_absolute() or str(path).count("/") != 1 or str(path).startswith("."):
        raise InputError(f"model: expected a checkpoint folder or a hub name like 'owner/name', got {path}")
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"])
        )
    except ImportError as error:
        raise MissingDependency("hub names need transformers: pip install 'sere[transformers]'") from error
    except Exception as error:  # the hub's library raises network, name and cache errors of many kinds
        raise InputError(f"model: no folder {path} and no hub model of this name: {error}") from error


def load_model(path: Path, progress: Progress = True) -> nn.Module:
    """Load a checkpoint whole, in its own dtype.

    Args:
        path: The folder.
        progress: True shows a bar on a terminal, "always" anywhere, False nowhere.

    Raises:
        InputError: Transformers cannot load it.
        UnsupportedModel: Transformers does not know its architecture.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
        with loading_bar(shown=progress == "always" or (progress and sys.stderr.isatty())):
            model: nn.Module = model_class(config).from_pretrained(path, dtype="auto")
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} cannot be loaded: {error}") from error
    return model


def load_tokenizer(path: Path) -> Any:
    """Load a checkpoint's tokenizer.

    Raises:
        InputError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"tokenizer: {path} has none that can be loaded ({error}); pass one") from error


def fits_memory(path: Path) -> bool:
    """Whether a checkpoint's weights leave room to calibrate within the memory that is available now."""
    files = (file for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    num_bytes = sum(file.stat().st_size for file in files)
    try:
        import psutil
    except ImportError:
        return True
    return num_bytes <= _SHARE_OF_MEMORY * int(psutil.virtual_memory().available)
