"""The similarity table that is used where nobody names one: its file name, and where it is looked for."""

from __future__ import annotations

import os
from pathlib import Path

from sere.errors import ConfigError

TABLE = "similarity.sere"
"""The name of a model's table beside its weights. No engine reads a file of this name as weights."""

SUFFIX = ".sere"

# Older tables were named like weights: an engine without sere reads such a file as one of the model's.
OLD_TABLE = "sere.safetensors"
TABLES = (TABLE, OLD_TABLE)


def default_table(model: str | os.PathLike[str] | None, revision: str | None = None) -> Path | None:
    """Return the table that is used for a model if none is named, or None if there is none.

    It is the one beside the model's weights, or else ``NAME.sere`` in the current folder: where ``sere
    calibrate`` writes the table of a model that is named as on the hub.

    Args:
        model: As for `own_table`.
        revision: As for `own_table`.
    """
    found = own_table(model, revision)
    if found is None and os.fspath(model or "") and (here := table_here(str(model))).is_file():
        found = here.absolute()
    return found


def required_table(what: str, model: str | os.PathLike[str] | None) -> Path:
    """Return the same as `default_table`, for what cannot do without a table.

    Args:
        what: What needs it, for the error.
        model: As for `own_table`.

    Raises:
        ConfigError: There is none.
    """
    found = default_table(model)
    if found is None:
        name = os.fspath(model or "")
        folder, here = (name, table_here(name)) if name else ("unknown: made in memory", f"NAME{SUFFIX}")
        raise ConfigError(
            f"table: {what} needs a similarity table, none was given, and there is no {TABLE} in the model's "
            f"folder ({folder}), nor {here} in the current one; make one with sere calibrate"
        )
    return found


def own_table(model: str | os.PathLike[str] | None, revision: str | None = None) -> Path | None:
    """Return the table beside a model's weights, or None if it has none.

    Args:
        model: The model's folder, or its name on the hub, of which only the local cache is searched; None and
            an empty name (a model that was made in memory) have no table.
        revision: The revision of a model on the hub.
    """
    name = os.fspath(model or "")
    if not name:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        found = [folder / table for table in TABLES if (folder / table).is_file()]
    else:
        found = _in_hub_cache(name, revision)
    return found[0].absolute() if found else None


def table_here(model: str) -> Path:
    """Return where a model's table is in the current folder: under the model's name, without its owner.

    Args:
        model: The model's name on the hub, or its folder; one in the hub's cache has its name on the hub.
    """
    folder = Path(model).expanduser().absolute()
    name = hub_name(folder) or folder.name
    return Path(f"{name.rpartition('/')[2]}{SUFFIX}")


def hub_name(folder: Path) -> str | None:
    """Return the hub name of a folder in the hub's cache, or None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1)


def _in_hub_cache(name: str, revision: str | None) -> list[Path]:
    """Return the tables in the hub's cache of a model that is named by its id."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.utils import HFValidationError
    except ImportError:
        return []
    try:
        found = [try_to_load_from_cache(name, table, revision=revision) for table in TABLES]
    except HFValidationError:
        return []
    return [Path(path) for path in found if isinstance(path, str)]
