"""From what a user names to a table's file: a path, or a repository on the hub."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sere.defaults import TABLE, TABLES
from sere.errors import ConfigError, HubError, TableError
from sere.hub import fetch_file, parse_repository

logger = logging.getLogger("sere")


def locate_table(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the file of a table; a path that exists wins over a repository of the same name.

    Args:
        source: In this order: a file; a folder that holds a table under its default name; a repository on the
            hub that does, as ``owner/name`` or ``owner/name@revision``, which is downloaded into the hub's
            cache. A `pathlib.Path` is never a repository.
        revision: A repository's branch, tag or commit, if ``source`` names none.
        token: An access token for the hub; None for the one that the user is logged in with.

    Returns:
        The file. A path that neither exists nor looks like a repository is returned as it is, so that whoever
        reads it says so.

    Raises:
        TableError: The folder holds no table.
        ConfigError: A revision is given twice, or for a path.
        HubError: The repository, its revision or its table is missing, private or out of reach; the text says
            which.
        MissingDependency: A repository is named, and huggingface_hub is not installed.
    """
    path = Path(source).expanduser()
    repository = None if isinstance(source, os.PathLike) or path.exists() else parse_repository(source)
    if repository is None:
        if revision is not None:
            raise ConfigError(
                f"revision: only a repository on the hub has revisions, got {revision!r} for the path "
                f"{path}; leave it out"
            )
        return _in_folder(path) if path.is_dir() else path
    if revision is not None:
        if repository.revision is not None:
            raise ConfigError(f"revision: got {revision!r}, but {source} names one already; give one of them")
        repository = repository._replace(revision=revision)
    try:
        found = fetch_file(repository, TABLE, token=token)
    except HubError as error:
        raise HubError(f"table: there is no file {path} here, and of the hub: {error}") from error
    logger.info("sere: the table of %s is %s", repository, found)
    return found


def _in_folder(folder: Path) -> Path:
    for name in TABLES:
        if (folder / name).is_file():
            return folder / name
    raise TableError(
        f"table: the folder {folder} has no {TABLE}; give the table's file (a folder here wins over a "
        "repository of this name on the hub)"
    )
