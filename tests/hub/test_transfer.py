"""Files to and from the hub, with the real client against a stand-in of the hub's HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from sere.errors import HubError, MissingDependency
from sere.hub import Repository, fetch_file, publish_files, read_remote
from tests.support.hub_server import TOKEN, HubServer, Repo, serving

# The client's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "similarity.sere"
OPEN, SECRET = Repository("mill/open"), Repository("mill/secret")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with an open and a private repository, each with one file."""
    with serving(tmp_path / "cache", monkeypatch) as server:
        for repository, private in ((OPEN, False), (SECRET, True)):
            server.repositories[repository.name] = Repo(private)
            server.repositories[repository.name].commit({NAME: b"first"})
        yield server


def kept(tmp_path: Path) -> list[str]:
    """Return the contents and half-written files in the cache."""
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.parent.name == "blobs"]


def test_a_file_is_fetched_once_and_again_when_it_changed(hub: HubServer) -> None:
    """The second time, only its digest is asked for; a revision keeps what it had."""
    first = hub.repositories[OPEN.name].branches["main"]
    assert fetch_file(OPEN, NAME).read_bytes() == fetch_file(OPEN, NAME).read_bytes() == b"first"
    assert hub.downloads(NAME) == 1
    hub.repositories[OPEN.name].commit({NAME: b"second"})
    assert fetch_file(OPEN, NAME).read_bytes() == b"second"
    assert fetch_file(OPEN._replace(revision=first), NAME).read_bytes() == b"first"


@pytest.mark.parametrize(
    ("repository", "name", "text"),
    [
        (Repository("mill/none"), NAME, r"^mill/none: the hub \(http.*\) has no such repository, or it is "
         "private and you, without a token, may not use it; check the name, and for a private one log in "),
        (SECRET, NAME, "^mill/secret: .* private and you, without a token, may not use it; .* hf auth login"),
        (OPEN._replace(revision="v9"), NAME, "^mill/open: .* has no revision 'v9' of it; give a branch, tag"),
        (OPEN, "other.sere", "^mill/open: .* has no other.sere of revision 'main'; give a repository that "),
        (Repository("mill/a--b"), NAME, "^mill/a--b: expected a repository's name like 'owner/name' "),
    ],
    ids=["repository", "private", "revision", "file", "name"],
)  # fmt: skip
def test_what_is_missing_is_named(hub: HubServer, repository: Repository, name: str, text: str) -> None:
    """Repository, revision or file, and what to do."""
    with pytest.raises(HubError, match=text):
        fetch_file(repository, name)


def test_a_token_opens_a_private_repository(hub: HubServer) -> None:
    """Its owner's does; for another one, the text no longer asks to log in without one."""
    assert fetch_file(SECRET, NAME, token=TOKEN).read_bytes() == b"first"
    hub.repositories["mill/other"] = Repo(private=True)
    with pytest.raises(HubError, match="it is private and your token may not use it"):
        fetch_file(Repository("mill/other"), NAME, token="hf_somebody")


def test_offline_the_cache_has_what_was_fetched(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a request; what was not fetched is named, with the command that fetches it."""
    fetch_file(OPEN, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert fetch_file(OPEN, NAME).read_bytes() == b"first"
    text = (
        "^mill/secret: HF_HUB_OFFLINE is set, and the local cache has no similarity.sere of revision 'main'"
    )
    with pytest.raises(HubError, match=f"{text}; unset it, or .* sere table pull mill/secret$"):
        fetch_file(SECRET, NAME)
    with pytest.raises(
        HubError, match=r"^mill/open: this needs the hub, but HF_HUB_OFFLINE is set; unset it$"
    ):
        read_remote(OPEN, NAME)
    assert len(hub.requests) == before


def test_a_download_that_breaks_off_leaves_nothing(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client tries again and gives up; no part of the file stays, and the next try gets all of it."""
    hub.repositories[OPEN.name].commit({NAME: b"x" * 4096})
    hub.cut_after = 100
    with pytest.raises(
        HubError, match=r"^mill/open: the transfer of similarity.sere .* failed .*; run it agai"
    ):
        fetch_file(OPEN, NAME)
    assert kept(tmp_path) == []
    hub.cut_after = None
    assert fetch_file(OPEN, NAME).read_bytes() == b"x" * 4096


def test_a_hub_that_is_down_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its address and the reason; what is in the cache is still found."""
    fetch_file(OPEN, NAME)
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(
        HubError, match=r"^mill/secret: the hub \(http://127.0.0.1:9\) cannot be reached \(.*ref"
    ):
        fetch_file(SECRET, NAME)
    assert fetch_file(OPEN, NAME).read_bytes() == b"first"


@pytest.mark.parametrize("private", [True, None], ids=["private", "open"])
def test_files_make_a_repository(hub: HubServer, tmp_path: Path, private: bool | None) -> None:
    """It is created with the first commit, which has all files; a text file is sent another way."""
    files = {NAME: tmp_path / "one", "README.md": tmp_path / "two"}
    for number, path in enumerate(files.values()):
        path.write_bytes(bytes([number]) * 9)
    new = Repository("mill/new")
    done = publish_files(new, files, message="Two files", private=private, token=TOKEN)
    made = hub.repositories[new.name]
    assert done.url == f"{hub.url}/mill/new/commit/{made.branches['main']}"
    assert done.repository == Repository("mill/new", made.branches["main"])
    assert made.private is bool(private)
    assert read_remote(done.repository, "README.md", token=TOKEN) == "\1" * 9
    assert fetch_file(done.repository, NAME, token=TOKEN).read_bytes() == b"\0" * 9


def test_a_branch_and_a_pull_request_leave_the_main_branch(hub: HubServer, tmp_path: Path) -> None:
    """A branch is made if there is none; a pull request needs no right to create."""
    before = hub.repositories[OPEN.name].branches["main"]
    (tmp_path / "one").write_bytes(b"other")
    files = {NAME: tmp_path / "one"}
    publish_files(OPEN._replace(revision="v2"), files, message="m", token=TOKEN)
    assert fetch_file(OPEN._replace(revision="v2"), NAME).read_bytes() == b"other"
    done = publish_files(OPEN, files, message="m", create_pr=True, token=TOKEN)
    assert done.url == f"{hub.url}/mill/open/discussions/1"
    assert hub.pull_requests == [{NAME: b"other"}]
    assert hub.repositories[OPEN.name].branches["main"] == before


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (None, "^mill/open: .* you, without a token, may not use it; .* hf auth login, or set HF_TOKEN$"),
        ("hf_somebody", "^mill/open: your token may not write to it .*; use a token with write access"),
    ],
    ids=["no token", "another's"],
)
def test_without_the_right_to_write_nothing_is_sent(
    hub: HubServer, tmp_path: Path, token: Any, text: str
) -> None:
    """The text says whose right is missing."""
    (tmp_path / "one").write_bytes(b"other")
    with pytest.raises(HubError, match=text):
        publish_files(OPEN, {NAME: tmp_path / "one"}, message="m", token=token)
    assert hub.objects == {}


def test_what_a_repository_does_not_have_is_none(hub: HubServer) -> None:
    """Neither repository, revision nor file need exist to be asked."""
    absent = (Repository("mill/none"), OPEN._replace(revision="v9"), OPEN)
    assert [read_remote(one, "README.md") for one in absent] == [None, None, None]


def test_the_clients_errors_need_nobody_else_to_import_them(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process the package has no attribute ``errors`` yet; what is absent is None all the same."""
    monkeypatch.delattr(huggingface_hub, "errors", raising=False)
    assert read_remote(OPEN, "README.md") is None


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with nothing but torch has no huggingface_hub."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"run: pip install '.\[transformers\]'"):
        fetch_file(OPEN, NAME)
