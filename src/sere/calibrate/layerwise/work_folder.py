"""The work folder of a layer-by-layer calibration: what is finished, so that a run can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sere.calibrate.layerwise.hidden_states import FileStates, States
from sere.calibrate.results import LayerResult
from sere.calibrate.routing import LayerRouting
from sere.calibrate.run_folder import RunFolder, kept_to_go_on
from sere.files import atomic_path
from sere.similarity import LayerSimilarity

_ROUTING = "routing"


class WorkFolder(RunFolder):
    """One run's finished layers and the hidden states after the last of them.

    Raises:
        InputError: The folder belongs to another run, or holds something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: Mapping[str, Any], made: Sequence[Path] = ()
    ) -> None:
        """Open or create the folder for the run that ``run``, a JSON-ready mapping, describes."""
        super().__init__(path, run, {"next_layer": 0, "states": None}, made)

    @property
    def next_layer(self) -> int:
        """The first decoder layer that is not finished."""
        return int(self.state["next_layer"])

    def new_states(self, layer: int) -> FileStates:
        """Return an empty file for the hidden states that enter decoder layer ``layer``."""
        return FileStates(self.path / f"states-{layer:04d}.bin")

    def states(self) -> FileStates | None:
        """Return the hidden states that enter `next_layer`, or None if no layer is finished.

        Raises:
            InputError: The file is damaged.
        """
        described = self.state["states"]
        return None if described is None else FileStates.reopen(self.path, described)

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
        self.record(next_layer=layer + 1, states=None if states is None else states.describe())

    def _layer_file(self, layer: int) -> Path:
        return self.path / f"layer-{layer:04d}.safetensors"


def resumable(
    path: str | os.PathLike[str], run: Mapping[str, Any], *, total: int
) -> AbstractContextManager[WorkFolder]:
    """Open a work folder while the block runs; see `kept_to_go_on`.

    Args:
        path: The folder.
        run: See `WorkFolder`.
        total: Decoder layers of the model, for the note on an exception.
    """

    def kept(work: WorkFolder) -> str | None:
        if not work.next_layer:
            return None
        return (
            f"{work.next_layer} of {total} layers are done (kept in {work.path}); the same command "
            "continues after them"
        )

    return kept_to_go_on(path, lambda made: WorkFolder(path, run, made), kept)
