"""Table files: safetensors with a description in the header; no pickle. Knows dicts of tensors only.

The header's metadata are strings, all but ``format`` in JSON. Entries: ``identity``, ``metric``,
``metric_parameters``, ``num_tokens`` (calibration tokens), ``data_digest``, ``seed``, ``provenance``,
``fingerprint``; from version 3 on ``tiers`` and ``additions`` (the digest of tiers and routing sample, which
the fingerprint leaves out).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sere.errors import OutputError, TableError, name_some
from sere.files import atomic_path, keep_other_files, what_is_there

FORMAT = "sere-similarity-table"
FORMAT_VERSION = 3
# Version 1 held one E and K for all layers, a digest of the architecture's values instead of the values, and
# 0 for a similarity that is not known. Version 2 held no tiers and no routing sample.
_READ_VERSIONS = (1, 2, 3)
_ENTRIES = (
    "identity",
    "metric",
    "metric_parameters",
    "num_tokens",
    "data_digest",
    "seed",
    "provenance",
    "fingerprint",
)
_ENTRIES_SINCE_3 = ("tiers", "additions")


class StoredTable(NamedTuple):
    """What a table file holds.

    Attributes:
        version: Format version.
        entries: The header's values by name.
        tensors: Tensors by name.
    """

    version: int
    entries: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: str | os.PathLike[str], entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write one table file, atomically.

    Args:
        path: The file; its folder is created if need be.
        entries: Values for the header, JSON-ready, by name.
        tensors: Tensors by name.

    Raises:
        OutputError: It cannot be written, or a file that is not a table is there.
    """
    keep_other_files(path, holds_table, "a similarity table")
    metadata = {name: json.dumps(value, sort_keys=True) for name, value in entries.items()}
    metadata |= {"format": FORMAT, "format_version": json.dumps(FORMAT_VERSION)}
    with atomic_path(path) as temporary:
        # Layers may share a tensor, which safetensors refuses to write twice.
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            save_file(copies, temporary, metadata=metadata)
        except SafetensorError as error:  # also for errors of the system, such as a full disk
            raise OutputError(f"{os.fspath(path)}: cannot be written: {error}") from error


def read(path: str | os.PathLike[str]) -> StoredTable:
    """Read a table file; what its tensors mean is not checked here.

    Raises:
        TableError: The file is missing, not a safetensors file, truncated, not a table, of an unknown format
            version, or lacks entries; the text names the file.
    """
    source = Path(path)
    if not source.is_file():
        raise TableError(
            f"{source}: {what_is_there(source)}; expected a similarity table, as sere calibrate writes it"
        )
    try:
        with safe_open(source, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys()) if metadata.get("format") == FORMAT else []
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise TableError(
            f"{source}: expected a similarity table (a complete safetensors file), got "
            f"{source.stat().st_size} bytes that are something else or were cut off ({error}); calibrate "
            "again or copy it again"
        ) from error
    try:
        version = _version(metadata)
        return StoredTable(version, _entries(metadata, version), tensors)
    except TableError as error:
        raise TableError(f"{source}: {error}") from error


def holds_table(path: Path) -> bool:
    """Whether a file is a similarity table, by its header; its content may be damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def _version(metadata: Mapping[str, str]) -> int:
    if metadata.get("format") != FORMAT:
        raise TableError(
            f"expected a similarity table (format {FORMAT!r} in the header), got a safetensors file of "
            f"format {metadata.get('format')!r}; is this a model's weights?"
        )
    version = metadata.get("format_version")
    for known in _READ_VERSIONS:
        if version == json.dumps(known):
            return known
    raise TableError(
        f"expected format version 1 to {FORMAT_VERSION}, got {version}; a newer sere wrote "
        "it: upgrade, or calibrate again"
    )


def _entries(metadata: Mapping[str, str], version: int) -> dict[str, Any]:
    names = (*_ENTRIES, *(_ENTRIES_SINCE_3 if version >= 3 else ()))
    missing = [name for name in names if name not in metadata]
    if missing:
        raise TableError(f"the header lacks {name_some(missing)}; calibrate again")
    try:
        return {name: json.loads(metadata[name]) for name in names}
    except json.JSONDecodeError as error:
        raise TableError(f"the header is not valid JSON ({error}); calibrate again") from error
