"""The folder of a calibration that runs all layers at once: sums so far, and texts that the model wrote."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sere.calibrate.packing import Tokens
from sere.calibrate.run_folder import RunFolder, kept_to_go_on
from sere.calibrate.sums import load_tensors, save_tensors

# Between two times that sums are written: writing takes about a second for a large model.
SECONDS = 60


class PassFolder(RunFolder):
    """What one pass over the calibration tokens has summed so far.

    Sums are in one file per process that holds some, named by the tokens that they are of. The manifest names
    these tokens once all files are complete; then the files before are deleted.

    Raises:
        InputError: The folder belongs to another run, or holds something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], run: Mapping[str, Any], made: Sequence[Path] = ()
    ) -> None:
        """Open or create the folder for the run that ``run``, a JSON-ready mapping, describes."""
        super().__init__(path, run, {"done": 0, "total": 0, "written": False}, made)
        self._saved = time.monotonic()

    @property
    def done(self) -> int:
        """Tokens of which sums are kept."""
        return int(self.state["done"])

    @property
    def written(self) -> bool:
        """Whether the tokens that the model wrote are kept."""
        return bool(self.state["written"])

    def is_due(self, done: int, total: int) -> bool:
        """Whether a minute has passed since sums were written, or since the start.

        Those of all tokens are due at once if some are kept already: a short run keeps none.
        """
        return time.monotonic() - self._saved >= SECONDS or 0 < self.done < done == total

    def finish(self, done: int, total: int) -> None:
        """Record that the sums of the first ``done`` of ``total`` tokens are in their files."""
        self.record(done=done, total=total)
        for path in self.path.glob("sums-*-*.safetensors"):
            if not path.name.startswith(f"sums-{done}-"):
                path.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def kept(self) -> str | None:
        """Return what is done, for whoever interrupted the run; None for nothing."""
        if self.done:
            return (
                f"{self.done} of {self.state['total']} tokens are done (kept in {self.path}); the same "
                "command continues after them"
            )
        if self.written:
            return f"what the model wrote is kept in {self.path}; the same command continues with it"
        return None


def written_tokens(
    work: PassFolder | None, tokenizer: Any, seq_len: int, write: Callable[[], Tokens]
) -> Tokens:
    """Return the tokens that the model wrote for an interrupted run, or let it write and keep them.

    Args:
        work: Where they are kept; None keeps nothing.
        tokenizer: The model's tokenizer.
        seq_len: Tokens per sequence.
        write: Lets the model write.
    """
    if work is None:
        return write()
    file = work.path / "tokens.safetensors"
    if work.written:
        found = load_tensors(file)
        return Tokens(found["ids"], seq_len, found["documents"], tokenizer, found["written"])
    tokens = write()
    save_tensors(file, {"ids": tokens.ids, "documents": tokens.documents, "written": tokens.written})
    work.record(written=True)
    return tokens


def sums_file(folder: Path, done: int, rank: int = 0) -> Path:
    """Return where a process keeps its sums.

    Args:
        folder: That of the run.
        done: The tokens that they are of.
        rank: Number of the process.
    """
    return folder / f"sums-{done}-{rank}.safetensors"


@contextmanager
def resumable_pass(
    path: str | os.PathLike[str] | None, run: Mapping[str, Any]
) -> Iterator[PassFolder | None]:
    """Open the folder of a pass while the block runs; see `kept_to_go_on`.

    Args:
        path: The folder; None keeps nothing.
        run: See `PassFolder`.
    """
    if path is None:
        yield None
        return
    with kept_to_go_on(path, lambda made: PassFolder(path, run, made), PassFolder.kept) as work:
        yield work
