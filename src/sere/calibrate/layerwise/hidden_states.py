"""The hidden states of all calibration tokens between two decoder layers: in memory or in a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sere.errors import InputError


class States(ABC):
    """Batches of hidden states, appended in order and read back in the same order and shapes."""

    @abstractmethod
    def append(self, batch: Tensor) -> None:
        """Append the next batch, ``[B, S, ...]``; it is copied."""

    @abstractmethod
    def read(self) -> Iterator[Tensor]:
        """Yield all batches, on the CPU."""

    @abstractmethod
    def describe(self) -> dict[str, Any] | None:
        """Return what `reopen` needs, JSON-ready; None if nothing outlives the process."""

    @abstractmethod
    def discard(self) -> None:
        """Free the memory or delete the file."""


class MemoryStates(States):
    """Hidden states kept in memory."""

    def __init__(self) -> None:
        self._batches: list[Tensor] = []

    def append(self, batch: Tensor) -> None:
        """Append the next batch, ``[B, S, ...]``; it is copied."""
        self._batches.append(batch.detach().to("cpu", copy=True))

    def read(self) -> Iterator[Tensor]:
        """Yield all batches, on the CPU."""
        yield from self._batches

    def describe(self) -> dict[str, Any] | None:
        """Return None: nothing outlives the process."""
        return None

    def discard(self) -> None:
        """Free the memory."""
        self._batches.clear()


class FileStates(States):
    """Hidden states in a raw file.

    Read and written, not mapped: the pages of a mapped file would count as this process's memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dtype: torch.dtype | None = None
        self._shapes: list[list[int]] = []
        path.unlink(missing_ok=True)

    @classmethod
    def reopen(cls, folder: Path, description: Mapping[str, Any]) -> FileStates:
        """Open the file of an earlier run.

        Raises:
            InputError: The file is missing or has another size than described, or the description is damaged.
        """
        states = cls.__new__(cls)
        try:
            states.path = folder / description["file"]
            states._dtype = getattr(torch, description["dtype"])
            states._shapes = description["shapes"]
            expected = sum(math.prod(shape) for shape in states._shapes) * states._item_bytes
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder}: expected the file, dtype and shapes of the hidden states that are kept, got "
                f"others ({type(error).__name__}: {error}); delete the folder {folder} and start again"
            ) from error
        found = states.path.stat().st_size if states.path.is_file() else None
        if found != expected:
            raise InputError(
                f"{states.path}: expected {expected} bytes of hidden states, found {found}; "
                f"delete the folder {folder} and start again"
            )
        return states

    def append(self, batch: Tensor) -> None:
        """Append the next batch, ``[B, S, ...]``; it is copied."""
        batch = batch.detach().cpu().contiguous()
        if self._dtype not in (None, batch.dtype):
            raise InputError(f"{self.path}: expected {self._dtype} as before, got {batch.dtype}")
        self._dtype = batch.dtype
        with self.path.open("ab") as stream:
            batch.view(torch.uint8).numpy().tofile(stream)
        self._shapes.append(list(batch.shape))

    def read(self) -> Iterator[Tensor]:
        """Yield all batches, on the CPU."""
        if self._dtype is None:
            return
        with self.path.open("rb") as stream:
            for shape in self._shapes:
                raw = np.fromfile(stream, dtype=np.uint8, count=math.prod(shape) * self._item_bytes)
                yield torch.from_numpy(raw).view(self._dtype).reshape(shape)

    def describe(self) -> dict[str, Any] | None:
        """Return what `reopen` needs, JSON-ready."""
        return {
            "file": self.path.name,
            "dtype": str(self._dtype).removeprefix("torch."),
            "shapes": self._shapes,
        }

    def discard(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    @property
    def _item_bytes(self) -> int:
        return 0 if self._dtype is None else self._dtype.itemsize
