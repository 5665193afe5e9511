"""Sums of layers in a file: what an interrupted pass over the tokens goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sere.errors import InputError
from sere.files import atomic_path


def under(name: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with ``name/`` before their own names."""
    return {f"{name}/{key}": tensor for key, tensor in tensors.items()}


def below(name: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``name/``, by what follows."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def save_sums(path: Path, layers: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Write what layers hold, by decoder-layer index; `below` gives a layer's part by its index."""
    save_tensors(
        path, {name: part for index, held in layers.items() for name, part in under(index, held).items()}
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return what `save_sums` or `save_tensors` wrote.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: expected what an interrupted calibration kept, got no such file or a damaged one "
            f"({error}); delete the folder {path.parent} and start again"
        ) from error
