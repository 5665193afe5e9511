"""Download single files of a repository, into the hub's own cache."""

from __future__ import annotations

from pathlib import Path

from sere.hub.client import hub_error, load_client, refuse_offline
from sere.hub.names import Repository


def fetch_file(repository: Repository, filename: str, *, token: str | None = None) -> Path:
    """Return a file of a repository: from the hub's cache if the hub has no newer one, else downloaded.

    A download that breaks off leaves no file. With HF_HUB_OFFLINE set, only the cache is looked at.

    Args:
        repository: Where it is.
        filename: Its path there.
        token: An access token; None for the one that the user is logged in with.

    Raises:
        HubError: The repository, revision or file is missing, private or cannot be reached; the text says
            which, and what to do.
        MissingDependency: huggingface_hub is not installed.
    """
    client = load_client()
    try:
        return Path(
            client.HfApi().hf_hub_download(
                repository.name, filename, revision=repository.revision, token=token
            )
        )
    except Exception as error:  # the client raises network, name and cache errors of many kinds
        raise hub_error(error, repository, filename, token) from error


def read_remote(repository: Repository, filename: str, *, token: str | None = None) -> str | None:
    """Return a text file as the hub has it now; None if repository, revision or file does not exist.

    Args:
        repository: Where it is.
        filename: Its path there.
        token: As in `fetch_file`.

    Raises:
        HubError: The hub cannot be reached.
    """
    refuse_offline(repository)
    client = load_client()
    # The package loads its modules by need, and no attribute names this one before something imports it.
    from huggingface_hub import errors

    absent = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
    )
    try:
        path = client.HfApi().hf_hub_download(
            repository.name, filename, revision=repository.revision, token=token
        )
    except absent:
        return None
    except Exception as error:  # as above
        raise hub_error(error, repository, filename, token) from error
    return Path(path).read_text(encoding="utf-8")
