"""A checkpoint's model: without weights, as its config describes it, or with all of them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from sere.checkpoints.classes import choose_class, is_auto
from sere.checkpoints.completeness import check_complete, refuse_incomplete, say_unused
from sere.checkpoints.config import load_config, missing_package
from sere.checkpoints.quiet import errors_only, loading_bar
from sere.checkpoints.weight_files import find_weights, read_json
from sere.errors import InputError, SereError


def empty_model(folder: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> Any:
    """Return a checkpoint's model on the meta device, in evaluation mode; no weight is read.

    Args:
        folder: The checkpoint folder.
        dtype: Of the weights; None for what the config says.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Raises:
        InputError: The config does not describe a model.
        UnsupportedModel: Transformers has no class for it.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    kind, config = choose_class(config)
    options = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device("meta"):
            if is_auto(kind):
                model = kind.from_config(config, trust_remote_code=trust_remote_code, **options)
            else:
                model = kind._from_config(config, **options)
    except Exception as error:  # a config that makes no sense fails wherever its value is used first
        raise _refusal(folder, "no model can be built from its config.json", error) from error
    return model.eval()


def check_weights(folder: Path, *, trust_remote_code: bool = False) -> frozenset[str] | None:
    """Refuse a checkpoint that does not hold all weights of its model, without reading them.

    Weights are not checked if they are quantized, not safetensors, or of a model that Transformers lacks.

    Args:
        folder: The checkpoint folder.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Returns:
        The names of tensors that the model does not use; None if the weights were not checked.

    Raises:
        InputError: Weights are missing or have the wrong shape; the text names them.
    """
    files = find_weights(folder)
    kind, config = choose_class(load_config(folder, trust_remote_code=trust_remote_code))
    if files.safetensors and not is_auto(kind) and getattr(config, "quantization_config", None) is None:
        return check_complete(files, empty_model(folder))
    return None


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    experts_implementation: str | None = None,
    trust_remote_code: bool = False,
    bar: bool = False,
) -> nn.Module:
    """Return a checkpoint's model with all its weights, on the CPU, in evaluation mode.

    Args:
        folder: The checkpoint folder.
        dtype: Of the weights; ``"auto"`` for the checkpoint's own.
        experts_implementation: How Transformers computes the experts; None for its own choice.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.
        bar: Let Transformers show its progress bar.

    Raises:
        InputError: The checkpoint is damaged or incomplete, or Transformers cannot load it.
        UnsupportedModel: Transformers has no class for it.
        MissingDependency: It needs a package that is not installed.
    """
    generation = folder / "generation_config.json"
    if generation.is_file():
        read_json(generation)
    config = load_config(folder, trust_remote_code=trust_remote_code)
    kind, own = choose_class(config)
    check_weights(folder, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if experts_implementation is not None:
        options["experts_implementation"] = experts_implementation
    try:
        with loading_bar(shown=bar), errors_only():
            model, report = kind.from_pretrained(
                folder, config=own, trust_remote_code=trust_remote_code and is_auto(kind), **options
            )
    except Exception as error:  # Transformers, its quantizers and torch raise errors of every kind here
        raise _refusal(folder, "cannot be loaded", error) from error
    refuse_incomplete(
        folder,
        missing=report["missing_keys"],
        mismatched=report["mismatched_keys"],
        unexpected=report["unexpected_keys"],
    )
    say_unused(folder, report["unexpected_keys"])
    model.config._name_or_path = config._name_or_path
    loaded: nn.Module = model.eval()
    return loaded


def _refusal(folder: Path, what: str, error: Exception) -> SereError:
    if isinstance(error, SereError):
        return error
    if isinstance(error, ImportError):
        return missing_package("model", folder, error)
    if isinstance(error, UnpicklingError):
        # Its text is not quoted: PyTorch advises to load the file without protection.
        return InputError(
            f"model: {folder}: {what}: its weights are damaged, or contain Python objects besides tensors, "
            "which can run code and are not loaded; copy it again, or give the checkpoint as safetensors"
        )
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return InputError(f"model: {folder}: {what}: {kind}{' '.join(str(error).split())}")
