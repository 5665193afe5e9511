"""Tables as files: safetensors with the description in its header; no pickle.

Tensors are ``layers.{i}.similarity`` and, where there is one, ``layers.{i}.scale``, both ``[E, E]`` float32;
a similarity that is not known is NaN.
The header's metadata are strings, all but ``format`` in JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sere.errors import InputError, OutputError, TableError
from sere.files import atomic_path, keep_other_files, what_is_there
from sere.identity import ModelIdentity
from sere.similarity import LayerSimilarity
from sere.table.artifact import SimilarityTable, describe, tensors
from sere.table.unknown import read_zeros_as_unknown

FORMAT = "sere-similarity-table"
FORMAT_VERSION = 2
# Version 1 held one E and K for all layers, a digest in place of the values that it was made of, and 0 for a
# similarity that is not known.
_READ_VERSIONS = ("1", "2")
_KEYS = (
    "identity",
    "metric",
    "metric_parameters",
    "num_tokens",
    "data_digest",
    "seed",
    "provenance",
    "fingerprint",
)
_NAME = re.compile(r"layers\.(\d+)\.(similarity|scale)")
_Table = TypeVar("_Table", bound=SimilarityTable)


def save(table: SimilarityTable, path: str | os.PathLike[str]) -> None:
    """Write ``table`` to ``path`` as one safetensors file, atomically.

    Args:
        table: The table.
        path: The file; its folder is created if need be.

    Raises:
        OutputError: It cannot be written, or a file that is no table is there.
    """
    keep_other_files(path, holds_table, "a similarity table")
    values = describe(table) | {"provenance": dict(table.provenance), "fingerprint": table.fingerprint}
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    # A table that came from a file of version 1 has no more than that to write.
    version = FORMAT_VERSION if table.identity.recorded_digest is None else 1
    metadata |= {"format": FORMAT, "format_version": json.dumps(version)}
    with atomic_path(path) as temporary:
        # Layers may share a tensor, which safetensors refuses to write twice.
        copies = {name: t.clone() for name, t in tensors(table).items()}
        try:
            save_file(copies, temporary, metadata=metadata)
        except SafetensorError as error:  # of the system, too: a full disk
            raise OutputError(f"{os.fspath(path)}: cannot be written: {error}") from error


def holds_table(path: Path) -> bool:
    """Whether a file is a similarity table, by its header; what it holds may be damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load(cls: type[_Table], path: str | os.PathLike[str]) -> _Table:
    """Read a table and check everything that can be checked without the model.

    Raises:
        TableError: The file is missing, not a safetensors file, truncated, not a table, of an unknown format
            version, damaged, or its content makes no sense; the text names the file.
    """
    metadata, named = _read(Path(path))
    try:
        return _build(cls, metadata, named)
    except (InputError, TableError) as error:
        raise TableError(f"{os.fspath(path)}: {error}") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise TableError(
            f"{path}: {what_is_there(path)}; expected a similarity table, as sere calibrate writes it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys()) if metadata.get("format") == FORMAT else []
            return metadata, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise TableError(
            f"{path}: expected a similarity table (a whole safetensors file), got {path.stat().st_size} "
            f"bytes that are not one or are cut off ({error}); calibrate again or copy it again"
        ) from error


def _build(cls: type[_Table], metadata: Mapping[str, str], named: Mapping[str, Tensor]) -> _Table:
    values = _metadata(metadata)
    try:
        model = ModelIdentity.from_mapping(values["identity"])
        described = {name: values[name] for name in _KEYS if name not in ("identity", "fingerprint")}
        table = cls(layers=_layers(named), identity=model, **described)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise TableError(f"the identity in its header makes no sense: {error!r}; calibrate again") from error
    if table.fingerprint != values["fingerprint"]:
        raise TableError(
            f"expected the fingerprint {values['fingerprint'][:12]} of its header, got "
            f"{table.fingerprint[:12]}: the content was changed after it was written; calibrate again or "
            "copy it again"
        )
    if metadata["format_version"] != "1":
        return table
    layers = {i: read_zeros_as_unknown(layer, table.metric) for i, layer in table.layers.items()}
    return replace(table, layers=layers)


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise TableError(
            f"expected a similarity table (format {FORMAT!r} in the header), got a safetensors file of "
            f"format {metadata.get('format')!r}; is this a model's weights?"
        )
    version = metadata.get("format_version")
    if version not in _READ_VERSIONS:
        raise TableError(
            f"expected format version {' or '.join(_READ_VERSIONS)}, got {version}; a newer sere wrote it: "
            "upgrade, or calibrate again"
        )
    missing = [name for name in _KEYS if name not in metadata]
    if missing:
        raise TableError(f"the header lacks {', '.join(missing)}; calibrate again")
    try:
        return {name: json.loads(metadata[name]) for name in _KEYS}
    except json.JSONDecodeError as error:
        raise TableError(f"the header is not valid JSON ({error}); calibrate again") from error


def _layers(named: Mapping[str, Tensor]) -> dict[int, LayerSimilarity]:
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise TableError(f"expected tensors named layers.<index>.similarity or .scale, got {name!r}")
        parts.setdefault(int(match[1]), {})[match[2]] = tensor
    return {index: _layer(index, part) for index, part in parts.items()}


def _layer(index: int, part: Mapping[str, torch.Tensor]) -> LayerSimilarity:
    if "similarity" not in part:
        raise TableError(f"layer {index}: has a scale but no similarity; calibrate again")
    try:
        return LayerSimilarity(part["similarity"], part.get("scale"))
    except InputError as error:
        raise TableError(f"layer {index}: {error}") from error
