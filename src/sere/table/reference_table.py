"""Read what the reference implementation's calibration wrote, so that it need not be repeated."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sere.errors import InputError, TableError, TableMismatch, name_some
from sere.files import what_is_there
from sere.identity import ModelIdentity, span, summary
from sere.provenance import provenance
from sere.similarity import LayerSimilarity
from sere.table.artifact import SimilarityTable
from sere.table.layers import off_diagonal

# A 16-bit similarity may be this far outside [0, 1] by rounding: twice bfloat16's epsilon.
ROUNDING_16_BIT = 2**-6


def import_reference_table(
    path: str | os.PathLike[str], identity: ModelIdentity, *, metric: str = "frobenius"
) -> SimilarityTable:
    """Turn a ``similarity_matrices.pt`` (``{layer: tensor}``) into a table; NaN means not known.

    Nothing in the file is executed (``weights_only=True``). The file does not say how it was made: the metric
    is what the caller says, data and seed stay empty, and a note in the provenance says so.

    Args:
        path: The file; keys are decoder-layer indices (int or str), values ``[E, E]``, any float dtype.
        identity: The model that was calibrated.
        metric: The metric that was used; the reference implementation's default.

    Returns:
        The table, in float32; ``provenance["notes"]`` names each loss.

    Raises:
        TableError: The file is missing, unreadable or holds something else.
        TableMismatch: Its layers or E are not the model's; the text names both sides.

    Source: SERE (arXiv 2602.07616), the calibration of its reference implementation.
    """
    source = Path(path)
    matrices = {_index(source, key): _matrix(source, key, value) for key, value in _read(source).items()}
    sizes = {index: len(matrix) for index, matrix in matrices.items()}
    if sizes != dict(identity.experts):
        raise TableMismatch(
            f"{source}: holds layers [{name_some(sorted(sizes))}] with {span(sizes.values())} experts, but "
            f"the model is {summary(identity)} with experts in layers "
            f"[{name_some(sorted(identity.layer_names))}]; "
            "give the model it was made for"
        )
    notes = [
        f"imported from {source.name} (sha256 {_digest(source)[:12]}), which does not say how it was made"
    ]
    dtypes = sorted({str(matrix.dtype).removeprefix("torch.") for matrix in matrices.values()})
    if dtypes != ["float32"]:
        notes.append(f"stored as {', '.join(dtypes)}: rounding may have changed which expert is most similar")
    layers = {index: _layer(source, index, matrix) for index, matrix in matrices.items()}
    if pairs := sum(int(layer.similarity.isnan().sum()) for layer in layers.values()):
        notes.append(
            f"{pairs:,} similarities are NaN in the file; they count as not known and are never used"
        )
    return SimilarityTable(
        layers=layers,
        identity=identity,
        metric=metric,
        provenance=provenance() | {"notes": notes},
    )


def _read(source: Path) -> Mapping[Any, Any]:
    if not source.is_file():
        raise TableError(
            f"{source}: {what_is_there(source)}; expected the reference implementation's "
            "similarity_matrices.pt"
        )
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # what foreign bytes make the unpickler raise is not limited to its own errors
        # Its text is not quoted: PyTorch advises to load the file without protection.
        raise TableError(
            f"{source}: expected tensors by layer as torch.save writes them, got something else or a damaged "
            f"file ({type(error).__name__}); copy the file again, or calibrate again with sere calibrate"
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise TableError(f"{source}: expected a mapping of layers to tensors, got {type(content).__name__}")
    return content


def _index(source: Path, key: object) -> int:
    try:
        return int(str(key))
    except ValueError:
        raise TableError(f"{source}: expected layer indices as keys, got {key!r}") from None


def _matrix(source: Path, key: object, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 2:
        shape = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TableError(f"{source}: layer {key}: expected a floating-point [E, E] tensor, got {shape}")
    return value


def _layer(source: Path, index: int, matrix: Tensor) -> LayerSimilarity:
    values = matrix.detach().float()
    if len(values) > 1 and not len(off_diagonal(values)):
        raise TableError(
            f"{source}: layer {index}: expected similarities, got NaN for every pair of experts; calibrate "
            "again with sere calibrate"
        )
    # An expert with no known similarity is still like itself.
    itself = values.diagonal()
    values = values.diagonal_scatter(torch.where(itself.isnan(), 1.0, itself))
    inside = not bool(((values < -ROUNDING_16_BIT) | (values > 1 + ROUNDING_16_BIT)).any())
    if matrix.dtype in (torch.bfloat16, torch.float16) and inside:
        values = values.clamp(0, 1)
        near = (values.diagonal() - 1).abs() <= ROUNDING_16_BIT
        values.diagonal()[near] = 1.0
    try:
        return LayerSimilarity(values.contiguous())
    except InputError as error:
        raise TableError(f"{source}: layer {index}: {error}") from error


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()
