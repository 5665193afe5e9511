"""Weights that vLLM loads: the table is not among them, and new ones are not those that it was made of."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

from sere.defaults import OLD_TABLE

logger = logging.getLogger("vllm.sere")

# Methods of a worker that give a running engine other weights: from files, and from a trainer (0.30 on).
_FROM_FILES, _FROM_TRAINER = "reload_weights", "finish_weight_update"


@contextmanager
def without_table(table: Path) -> Iterator[None]:
    """Keep vLLM from reading a table as weights, where a model's folder has no index of its files.

    Args:
        table: The engine's own; tables with an old name are left out too.
    """
    from vllm.model_executor.model_loader import default_loader

    choose, loader = default_loader.filter_duplicate_safetensors_files, get_ident()

    @functools.wraps(choose)
    def filtered(files: list[str], *args: Any, **kwargs: Any) -> list[str]:
        # Another thread may load the model of another engine, whose table is another.
        mine = get_ident() == loader
        weights = [file for file in files if not (mine and _is_table(Path(file), table))]
        chosen: list[str] = choose(weights, *args, **kwargs)
        return chosen

    default_loader.filter_duplicate_safetensors_files = filtered
    try:
        yield
    finally:
        default_loader.filter_duplicate_safetensors_files = choose


def _is_table(file: Path, table: Path) -> bool:
    return file.name == OLD_TABLE or (file.exists() and table.exists() and file.samefile(table))


def watch_reloading(worker: Any, table: Path, *, speaks: bool) -> None:
    """Leave the table out of what a worker reloads, and say once that its weights are others.

    Args:
        worker: vLLM's worker, whose methods are replaced on this object.
        table: The engine's table.
        speaks: Whether this worker writes to the log.
    """
    model = str(worker.vllm_config.model_config.model)
    said: list[str] = []

    def say(what: str) -> None:
        if speaks and not said:
            said.append(what)
            logger.warning(
                "sere: %s, and re-routing goes on with the similarities of the weights that the table was "
                "calibrated on; calibrate the new weights and start the engine with their table once they "
                "have moved far (docs/operations.md, Weights that change); this is said once",
                what,
            )

    reload, finish = getattr(worker, _FROM_FILES, None), getattr(worker, _FROM_TRAINER, None)
    if reload is not None:

        @functools.wraps(reload)
        def reloading(*args: Any, **kwargs: Any) -> Any:
            with without_table(table):
                result = reload(*args, **kwargs)
            path = kwargs.get("weights_path", args[1] if len(args) > 1 else None)
            given = kwargs.get("weights_iterator", args[0] if args else None)
            if given is not None:
                say("the engine was given other weights")
            elif path is not None and not _same(str(path), model):
                say(f"the weights are those of {path} now, not of {model}")
            return result

        setattr(worker, _FROM_FILES, reloading)
    if finish is not None:

        @functools.wraps(finish)
        def finishing(*args: Any, **kwargs: Any) -> Any:
            result = finish(*args, **kwargs)
            say("a trainer has sent other weights")
            return result

        setattr(worker, _FROM_TRAINER, finishing)


def _same(path: str, model: str) -> bool:
    return path == model or Path(path).expanduser().resolve() == Path(model).expanduser().resolve()
