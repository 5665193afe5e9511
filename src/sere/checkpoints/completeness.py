"""Whether a checkpoint's tensors are the ones that its model needs, before and after they are read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from sere.checkpoints.transfer import conversions_of, load_into
from sere.checkpoints.weight_files import WeightFiles, open_safetensors
from sere.errors import InputError, name_some

logger = logging.getLogger("sere")

_APART = "cannot be put together from what is in it (tensors missing or of unequal shapes)"


def check_complete(files: WeightFiles, model: Any) -> frozenset[str]:
    """Refuse a checkpoint that does not give every weight of a model, without reading a weight.

    Names and shapes from the files' headers go through Transformers' own loading code.

    Args:
        files: The checkpoint's safetensors files.
        model: The model on the meta device, not quantized; its parameters are replaced by others there.

    Returns:
        The names of tensors that the model does not use.

    Raises:
        InputError: Weights are missing or have the wrong shape, or a file is damaged; the text names them.
        MissingDependency: Transformers is too old.
    """
    shapes = {name: _Shape(*found) for name, found in read_shapes(files).items()}
    report = load_into(model, shapes, "meta", conversions_of(model))
    model.tie_weights(missing_keys=report.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(report)
    refuse_incomplete(
        files.folder,
        missing=report.missing_keys,
        mismatched=report.mismatched_keys,
        unexpected=report.unexpected_keys,
        failed=report.conversion_errors,
    )
    return frozenset(report.unexpected_keys)


def say_unused(folder: Path, names: Collection[str]) -> None:
    """Log tensors in a checkpoint that its model does not use, if there are any."""
    if names:
        logger.warning(
            "sere: %s holds %s that the model of its config.json does not use: %s; if it should use "
            "them, this config.json belongs to another model",
            folder,
            _count(names, "tensor"),
            name_some(sorted(names)),
        )


def refuse_incomplete(
    folder: Path,
    *,
    missing: Collection[str] = (),
    mismatched: Iterable[tuple[str, Any, Any]] = (),
    unexpected: Collection[str] = (),
    failed: Collection[str] = (),
) -> None:
    """Refuse a checkpoint that lacks weights: Transformers would fill them with random numbers.

    Args:
        folder: The checkpoint folder.
        missing: Names of weights that no tensor gives.
        mismatched: Name, shape in the checkpoint and shape in the model of weights that do not fit.
        unexpected: Names of tensors that the model does not have.
        failed: Names of weights whose tensors cannot be put together.

    Raises:
        InputError: Something is missing, does not fit or cannot be put together.
    """
    wrong = [f"{name} ({_size(found)} instead of {_size(wanted)})" for name, found, wanted in mismatched]
    faults = [
        f"{_count(names, 'weight')} {one if len(names) == 1 else more}: {name_some(sorted(names))}"
        for names, one, more in (
            (missing, "of the model is not in it", "of the model are not in it"),
            (wrong, "has the wrong shape", "have the wrong shape"),
            (failed, _APART, _APART),
        )
        if names
    ]
    if not faults:
        return
    if unexpected:
        count = _count(unexpected, "tensor")
        faults.append(f"it holds {count} that the model does not have: {name_some(sorted(unexpected))}")
    raise InputError(
        f"model: {folder} is not a complete checkpoint of this architecture: "
        f"{name_some(faults, separator='; ')}. Download or copy it again, "
        "or give one whose weights and config.json belong together"
    )


def read_shapes(files: WeightFiles) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each tensor, from the files' headers.

    Raises:
        InputError: A file is damaged, or two hold other values under one name.
    """
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    paths: dict[str, Path] = {}
    for name in files.names:
        path = files.folder / name
        with open_safetensors(path)[0] as opened:
            for tensor in opened.keys():  # noqa: SIM118 - it is not a mapping
                part = opened.get_slice(tensor)
                if (first := paths.setdefault(tensor, path)) is not path:
                    _refuse_unequal(tensor, first, path)
                found[tensor] = tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), torch.uint8)
    return found


def _refuse_unequal(tensor: str, first: Path, second: Path) -> None:
    """Refuse two files that hold different values for one tensor: either could be loaded."""
    with open_safetensors(first)[0] as one, open_safetensors(second)[0] as other:
        if not torch.equal(one.get_tensor(tensor), other.get_tensor(tensor)):
            raise InputError(
                f"model: {first.parent}: {first.name} and {second.name} both hold {tensor}, with different "
                "values; download or copy the checkpoint again"
            )


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip


class _Shape:
    """A tensor of a checkpoint without its data, wherever it is moved to."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._shape = shape
        self.dtype = dtype

    def __getitem__(self, index: Any) -> _Shape:
        return self

    def to(self, dtype: torch.dtype | None = None, **_device: Any) -> torch.Tensor:
        return torch.empty(self._shape, dtype=dtype or self.dtype, device="meta")


def _count(names: Collection[str], what: str) -> str:
    return f"{len(names)} {what}" if len(names) == 1 else f"{len(names)} {what}s"


def _size(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a number"
