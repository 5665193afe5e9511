"""Share a table: its file and its card, in a folder or in a repository on the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from sere.defaults import TABLE
from sere.errors import ConfigError
from sere.files import atomic_path
from sere.hub import Published, Repository, parse_repository, publish_files, read_remote
from sere.table.card import CARD, Described, is_our_card, write_card

logger = logging.getLogger("sere")


class PushOptions(TypedDict, total=False):
    """The keyword arguments of `SimilarityTable.push_to_hub`, which describes them."""

    revision: str | None
    private: bool | None
    create_pr: bool
    commit_message: str | None
    base_model: str | None
    token: str | None


def save_card(table: Described, folder: Path, *, base_model: str | None = None) -> tuple[Path, ...]:
    """Write a table's card to a folder, unless somebody else's is there.

    Args:
        table: The table.
        folder: Where it goes.
        base_model: The model's name on the hub, if it is not the table's own name for it.

    Returns:
        The card's path; nothing if it was not written.

    Raises:
        OutputError: It cannot be written.
    """
    path = folder / CARD
    if path.is_file() and not is_our_card(path.read_text(encoding="utf-8", errors="replace")):
        _say_kept(str(path))
        return ()
    text = write_card(table, base_model=base_model)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return (path,)


def push(
    table: Described,
    repository: str,
    save: Callable[[Path], None],
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    base_model: str | None = None,
    token: str | None = None,
) -> Published:
    """Upload a table and its card in one commit; `SimilarityTable.push_to_hub` describes the arguments.

    Args:
        table: What the card tells.
        repository: Where to.
        save: Writes the table's file to a path.
        revision: The branch.
        private: Whether a new repository is private.
        create_pr: Open a pull request instead.
        commit_message: Of the commit.
        base_model: The model's name on the hub.
        token: An access token.

    Raises:
        ConfigError: The name is not one of a repository.
        HubError: The hub refuses it or cannot be reached.
    """
    target = find_repository(repository, revision)
    with TemporaryDirectory() as folder:
        files = {TABLE: Path(folder) / TABLE}
        save(files[TABLE])
        there = read_remote(target, CARD, token=token)
        if there is None or is_our_card(there):
            files[CARD] = Path(folder) / CARD
            text = write_card(table, repository=target.name, base_model=base_model)
            files[CARD].write_text(text, encoding="utf-8")
        else:
            _say_kept(f"{CARD} of {target.name}")
        return publish_files(
            target,
            files,
            message=commit_message or f"Similarity table of {table.identity.name}",
            private=private,
            create_pr=create_pr,
            token=token,
        )


def find_repository(name: str, revision: str | None = None) -> Repository:
    """Return the repository that a user names.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        revision: Its branch, tag or commit, if the name has none.

    Raises:
        ConfigError: It is not such a name, or the revision is given twice.
    """
    found = parse_repository(name)
    if found is None:
        raise ConfigError(
            f"repository: expected a name like 'owner/name', got {name!r}; a name that ends like a file, "
            f"such as {TABLE!r}, would be read as a path"
        )
    if revision is not None and found.revision is not None:
        raise ConfigError(f"revision: got {revision!r}, but {name} names one already; give one of them")
    return found if revision is None else found._replace(revision=revision)


def _say_kept(name: str) -> None:
    logger.warning("sere: %s was not written by sere and stays as it is; the table goes beside it", name)
