"""Reads a checkpoint's safetensors files one tensor at a time into fresh memory."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sere.checkpoints import find_weights
from sere.checkpoints.weight_files import open_safetensors
from sere.errors import InputError


class TensorReader:
    """Reads the tensors of a checkpoint folder by name.

    Files are open only inside a ``with`` block, and what is read is copied out of them: a mapped file's
    pages would count as this process's memory for as long as the file is open.

    Attributes:
        path: The folder.
        files: File name by tensor name.

    Raises:
        InputError: The folder has no safetensors weights, or files that its index names are not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files = self._locate()
        self._open: dict[str, tuple[Any, bool]] = {}
        self._stack = ExitStack()

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Return (name, bytes, modification time in ns) of each weight file: changes when the weights do."""
        stats = [(name, (self.path / name).stat()) for name in sorted(set(self.files.values()))]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def lazy(self, name: str) -> LazyTensor:
        """Return a stand-in that reads the tensor when it is indexed."""
        return LazyTensor(self, name)

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own."""
        file = self.files[name]
        if file not in self._open:
            handle, mapped = open_safetensors(self.path / file)
            self._open[file] = (self._stack.enter_context(handle), mapped)
        handle, mapped = self._open[file]
        tensor: Tensor = handle.get_tensor(name)
        return tensor.clone() if mapped else tensor

    def first_dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        with self:
            for name in self.files:
                tensor = self.read(name)
                if tensor.is_floating_point():
                    return tensor.dtype
        raise InputError(f"{self.path}: expected floating-point weights, found none")

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()
        self._stack.close()

    def _locate(self) -> dict[str, str]:
        found = find_weights(self.path)
        if not found.safetensors:
            raise InputError(
                f"{self.path}: only safetensors files can be read layer by layer, got {found.names[0]}; load "
                "the complete model (--whole, low_memory=False), or convert it: save_pretrained writes "
                "safetensors"
            )
        # What the files hold counts, as for Transformers, not what an index says of them.
        files: dict[str, str] = {}
        for name in found.names:
            with open_safetensors(self.path / name)[0] as file:
                files |= dict.fromkeys(file.keys(), name)
        return files


class LazyTensor:
    """A tensor of a checkpoint that is read when it is indexed."""

    def __init__(self, reader: TensorReader, name: str) -> None:
        self._reader = reader
        self._name = name

    def __getitem__(self, index: Any) -> Tensor:
        return self._reader.read(self._name)[index]
