"""Which files of a checkpoint folder hold its weights: those that Transformers would read, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sere.errors import InputError, name_some

# In the order in which Transformers looks for them; an index names the files that hold the tensors.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_OTHER = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights.

    Attributes:
        folder: Where they are.
        names: Their names, sorted.
        index: File name by tensor name, as the index says; None for a single file without an index.
    """

    folder: Path
    names: tuple[str, ...]
    index: Mapping[str, str] | None = None

    @property
    def safetensors(self) -> bool:
        """Whether they are safetensors files, which can be read one tensor at a time."""
        return all(name.endswith(".safetensors") for name in self.names)

    @property
    def num_bytes(self) -> int:
        """The size of all of them together, in bytes."""
        return sum((self.folder / name).stat().st_size for name in self.names)


def find_weights(folder: Path) -> WeightFiles:
    """Return a checkpoint's weight files, after checking that all of them exist.

    Args:
        folder: The checkpoint folder.

    Raises:
        InputError: There are none, the index is damaged, or files that it names are missing or are
            pointers of Git LFS; the text names them.
    """
    found = named_weights(folder)
    if found is None:
        others = sorted(_shown(path) for path in folder.iterdir() if path.suffix in _OTHER)
        raise InputError(
            f"model: {folder} holds no weights; expected {', '.join(_NAMES)} or the name that config.json "
            f"gives as transformers_weights, found {name_some(others, 5) or 'no such file'}"
        )
    missing = [name for name in found.names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"model: {folder}: {len(missing)} of {len(found.names)} weight files are missing: "
            f"{name_some(missing)}; download or copy the checkpoint again"
        )
    pointers = [name for name in found.names if _is_pointer(folder / name)]
    if pointers:
        raise InputError(
            f"model: {folder}: {len(pointers)} weight files are pointers of Git LFS, not weights, the first "
            f"is {pointers[0]}; run 'git lfs pull' in the folder"
        )
    return found


def _shown(path: Path) -> str:
    return path.name if path.is_file() else f"{path.name} (not a file, or a broken link)"


def model_files(folder: Path) -> list[tuple[str, int, int]]:
    """Return (name, bytes, modification time in ns) of a folder's config and of all files of weights.

    It changes when the model does. Files count by their endings, because other engines read other names.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _OTHER or path.name == "config.json"]
    stats = [(path.name, path.stat()) for path in files if path.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def named_weights(folder: Path) -> WeightFiles | None:
    """Return the weight files that a folder names, whether they exist or not; None if it names none.

    Raises:
        InputError: The index is damaged.
    """
    for name in _candidates(folder):
        if not (folder / name).is_file():
            continue
        if not name.endswith(_INDEX):
            return WeightFiles(folder, (name,))
        index = _read_index(folder / name)
        return WeightFiles(folder, tuple(sorted(set(index.values()))), index)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        InputError: It holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"model: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"model: {path} is not JSON ({error}); copy the checkpoint again") from error
    if not isinstance(value, dict):
        raise InputError(f"model: {path}: expected a JSON object, got {type(value).__name__}")
    return value


def open_safetensors(path: Path) -> tuple[Any, bool]:
    """Open a file; the flag says whether its tensors are views of the mapped file, not copies.

    Raises:
        InputError: It is damaged or cannot be read.
    """
    try:
        try:
            return safe_open(path, framework="pt", backend="pread"), False
        except TypeError:  # a safetensors release that can only map files
            return safe_open(path, framework="pt"), True
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as safetensors ({error}); copy the checkpoint again"
        ) from error


def _candidates(folder: Path) -> tuple[str, ...]:
    config = folder / "config.json"
    named = read_json(config).get("transformers_weights") if config.is_file() else None
    if not isinstance(named, str):
        return _NAMES
    if Path(named).name != named:
        raise InputError(f"model: {config}: transformers_weights: expected a file's name, got {named!r}")
    return (named,)


def _read_index(path: Path) -> dict[str, str]:
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(n, str) for n in found.values()):
        raise InputError(
            f"model: {path}: expected a weight_map from tensor names to file names; copy the checkpoint again"
        )
    return found


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_LFS)) == _LFS
    except OSError:  # reading it as weights says why
        return False
