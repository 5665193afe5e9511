"""What a user names becomes a table's file: a path that exists wins over a repository on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sere.defaults import OLD_TABLE, TABLE
from sere.errors import ConfigError, HubError, TableError
from sere.table import SimilarityTable, locate_table
from tests.support.hub_server import HubServer, Repo, serving
from tests.support.tables import table

NAME = "mill/moe"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with a table in ``mill/moe``, another on its branch ``v2``; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(tmp_path / "cache", monkeypatch) as server:
        server.repositories[NAME] = Repo()
        for branch, seed in (("main", 1), ("v2", 2)):
            table(seed=seed).save(tmp_path / "made.sere")
            server.repositories[NAME].commit({TABLE: (tmp_path / "made.sere").read_bytes()}, branch)
        yield server


@pytest.mark.parametrize(
    ("source", "revision", "seed"),
    [(NAME, None, 1), (NAME, "v2", 2), (f"{NAME}@v2", None, 2)],
    ids=["main", "revision", "in the name"],
)
def test_a_repository_is_loaded_by_its_name(
    hub: HubServer, source: str, revision: str | None, seed: int
) -> None:
    """Of a branch, if one is named."""
    loaded = SimilarityTable.from_pretrained(source, revision=revision)
    assert (loaded.seed, loaded.fingerprint) == (seed, table(seed=seed).fingerprint)


@pytest.mark.parametrize(
    "name", [NAME, f"{NAME}/{TABLE}", f"{NAME}/{OLD_TABLE}"], ids=["file", "folder", "old"]
)
def test_a_path_that_exists_wins(hub: HubServer, name: str) -> None:
    """A file, or a folder with a table under one of its names: the hub is not asked."""
    table(seed=3).save(name)
    assert SimilarityTable.from_pretrained(NAME).seed == 3
    assert hub.requests == []


def test_a_folder_without_a_table_is_not_the_repository(hub: HubServer) -> None:
    """A model's folder of the same name must not silently get another table than its own."""
    Path(NAME).mkdir(parents=True)
    with pytest.raises(TableError, match=rf"the folder {NAME} has no {TABLE}; .*a folder here wins over a"):
        locate_table(NAME)


@pytest.mark.parametrize(
    "source", [Path(NAME), "nowhere.sere", "tables/nowhere.sere"], ids=["Path", "name", "ends like a file"]
)
def test_what_is_meant_as_a_path_is_never_asked_of_the_hub(hub: HubServer, source: Path | str) -> None:
    """The error is that of a file that is missing."""
    with pytest.raises(TableError, match=f"^{source}: does not exist; expected a similarity table"):
        SimilarityTable.from_pretrained(source)
    assert hub.requests == []


def test_a_name_that_neither_has_says_so_of_both(hub: HubServer) -> None:
    """A path with a misspelled folder looks like a repository."""
    with pytest.raises(
        HubError, match=r"^table: there is no file tables/moe here, and of the hub: tables/moe: "
    ):
        locate_table("tables/moe")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (f"{NAME}@v2", "^revision: got 'v1', but mill/moe@v2 names one already; give one of them"),
        ("moe.sere", "^revision: only a repository on the hub has revisions, got 'v1' for the path moe.sere"),
    ],
    ids=["twice", "path"],
)
def test_a_revision_that_would_be_ignored_is_refused(hub: HubServer, source: str, text: str) -> None:
    """Given twice, or for a file."""
    with pytest.raises(ConfigError, match=text):
        SimilarityTable.from_pretrained(source, revision="v1")


def test_the_home_folder_is_known(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may begin with ~, in every engine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_table("~/made.sere") == tmp_path / "made.sere"


def test_what_a_repository_has_under_a_tables_name_must_be_one(hub: HubServer) -> None:
    """Other content is refused as it is in a file; nothing of it is run."""
    hub.repositories[NAME].commit({TABLE: b"\\x80\\x04something pickled"})
    with pytest.raises(TableError, match="expected a similarity table"):
        SimilarityTable.from_pretrained(NAME)
