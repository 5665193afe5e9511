"""The work folder of a layer-by-layer calibration: what is finished, so that a run can be resumed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sere.calibrate.layerwise.hidden_states import FileStates, States
from sere.calibrate.results import LayerResult
from sere.calibrate.routing import LayerRouting
from sere.errors import InputError, name_some
from sere.files import atomic_path, new_folders, write_json
from sere.interrupts import going_on
from sere.resume import differences
from sere.similarity import LayerSimilarity

_MANIFEST = "calibration.json"
_FORMAT = 3
_ROUTING = "routing"
_IN_WORDS = {
    "checkpoint": "the checkpoint's files differ",
    "model": "the model's shape differs",
    "data_digest": "the texts or the tokenizer differ",
}


class WorkFolder:
    """One run's finished layers and the hidden states after the last of them.

    The manifest is written last and atomically, so that everything it names is complete.

    Attributes:
        path: The folder.
        next_layer: The first decoder layer that is not finished.

    Raises:
        InputError: The folder belongs to another run, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Open or create the folder for the run that ``run``, a JSON-ready mapping, describes."""
        self.path = Path(path)
        self._run = json.loads(json.dumps(run))
        self._states: dict[str, Any] | None = None
        self.next_layer = 0
        manifest = self.path / _MANIFEST
        if manifest.is_file():
            self._resume(self._read(manifest))
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path}: expected an empty folder or that of an interrupted calibration, got one with "
                "other files; choose another"
            )
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write()

    def new_states(self, layer: int) -> FileStates:
        """Return an empty file for the hidden states that enter decoder layer ``layer``."""
        return FileStates(self.path / f"states-{layer:04d}.bin")

    def states(self) -> FileStates | None:
        """Return the hidden states that enter `next_layer`, or None if no layer is finished.

        Raises:
            InputError: The file is damaged.
        """
        return None if self._states is None else FileStates.reopen(self.path, self._states)

    def save_layer(self, layer: int, found: LayerResult) -> None:
        """Save what was measured in a decoder layer."""
        tensors: dict[str, Tensor] = {f"{name}/halves": pair for name, pair in found.halves.items()}
        for name, similarity in found.similarities.items():
            tensors[f"{name}/similarity"] = similarity.similarity.cpu().contiguous()
            if similarity.scale is not None:
                tensors[f"{name}/scale"] = similarity.scale.cpu().contiguous()
        if found.routing is not None:
            tensors |= {f"{_ROUTING}/{name}": tensor for name, tensor in found.routing._asdict().items()}
        with atomic_path(self._layer_file(layer)) as temporary:
            save_file(tensors, temporary)

    def load_layer(self, layer: int) -> LayerResult:
        """Return what was measured in a finished layer."""
        path = self._layer_file(layer)
        tensors = load_file(path) if path.is_file() else {}
        names = [name.removesuffix("/similarity") for name in tensors if name.endswith("/similarity")]
        similarities = {
            name: LayerSimilarity(tensors[f"{name}/similarity"], tensors.get(f"{name}/scale"))
            for name in names
        }
        parts = [tensors.get(f"{_ROUTING}/{name}") for name in LayerRouting._fields]
        recorded = [part for part in parts if part is not None]
        routing = LayerRouting(*recorded) if len(recorded) == len(parts) else None
        halves = {name: tensors[f"{name}/halves"] for name in names if f"{name}/halves" in tensors}
        return LayerResult(similarities, routing, halves)

    def finish(self, layer: int, states: States | None) -> None:
        """Record that a decoder layer is done, and the hidden states after it."""
        self.next_layer = layer + 1
        self._states = None if states is None else states.describe()
        self._write()

    def delete(self) -> None:
        """Delete the folder: the run is done."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def _layer_file(self, layer: int) -> Path:
        return self.path / f"layer-{layer:04d}.safetensors"

    def _write(self) -> None:
        state = {"next_layer": self.next_layer, "states": self._states}
        write_json(self.path / _MANIFEST, {"format": _FORMAT, "run": self._run} | state)

    def _read(self, manifest: Path) -> dict[str, Any]:
        try:
            found = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{manifest}: is damaged; delete the folder {self.path} and start again")
        return found

    def _resume(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("format") != _FORMAT:
            raise InputError(
                f"{self.path}: was written by another version of sere, which this one cannot continue; "
                "delete it, or choose another folder"
            )
        if different := differences(*_told_apart(manifest.get("run", {}), self._run), _IN_WORDS):
            raise InputError(
                f"{self.path}: holds an interrupted calibration with other settings: "
                f"{name_some(different, separator='; ')}; repeat the original "
                "command, delete the folder, or choose another folder"
            )
        self.next_layer, self._states = int(manifest["next_layer"]), manifest["states"]


def _told_apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two records without entries that tell a reader nothing.

    How the tokens were chosen is shown if it led to other tokens, because it says more than their digest.
    """
    same = before.get("data_digest") == now.get("data_digest")
    chosen = before.get("chosen") != now.get("chosen")
    left_out = {"chosen"} if same else {"data_digest"} if chosen else set()
    old, new = ({name: run[name] for name in run if name not in left_out} for run in (before, now))
    return old, new


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; the lock ends with the process.

    Raises:
        InputError: Another process has it.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a folder, got a file; choose another")
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            import fcntl

            handle = os.open(path, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path}: another calibration is running in it; wait until it ends, or choose another folder"
            ) from error
        except (ImportError, OSError):  # this system, or this disk, cannot lock a folder
            pass
        yield


@contextmanager
def resumable(path: str | os.PathLike[str], run: Mapping[str, Any], *, total: int) -> Iterator[WorkFolder]:
    """Open a work folder while the block runs; delete it at the end.

    If the block fails after a layer is finished, the folder stays, and a note on the exception says so;
    otherwise nothing stays.

    Args:
        path: The folder.
        run: See `WorkFolder`.
        total: Decoder layers of the model, for the note.
    """

    def kept() -> str | None:
        if not work.next_layer:
            return None
        return (
            f"{work.next_layer} of {total} layers are done (kept in {work.path}); the same command "
            "continues after them"
        )

    with new_folders(path), _locked(Path(path)):
        work = WorkFolder(path, run)
        with going_on(kept):
            try:
                yield work
            except BaseException:
                if not work.next_layer:
                    work.delete()
                raise
        work.delete()
