"""Upload files to a repository, in one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sere.hub.client import hub_error, load_client
from sere.hub.names import Repository


class Published(NamedTuple):
    """What was uploaded.

    Attributes:
        repository: Where to, with the commit as its revision.
        url: The commit's page, or that of the pull request.
    """

    repository: Repository
    url: str


def publish_files(
    repository: Repository,
    files: Mapping[str, Path],
    *,
    message: str,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Published:
    """Upload files in one commit; create the repository and the branch first if they do not exist.

    Args:
        repository: Where to; its revision is a branch.
        files: Local files by their path in the repository.
        message: Of the commit.
        private: Whether a new repository is private; None for the owner's default.
        create_pr: Open a pull request instead of committing; the repository must exist.
        token: An access token with write access; None for the one that the user is logged in with.

    Raises:
        HubError: The hub refuses it or cannot be reached; the text says what to do.
        MissingDependency: huggingface_hub is not installed.
    """
    client = load_client()
    api, (name, branch) = client.HfApi(), repository
    operations = [
        client.CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(file))
        for path, file in files.items()
    ]
    try:
        if not create_pr:
            api.create_repo(name, private=private, exist_ok=True, token=token)
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True, token=token)
        commit = api.create_commit(
            name, operations, commit_message=message, revision=branch, create_pr=create_pr, token=token
        )
    except Exception as error:  # the client raises network, name and permission errors of many kinds
        raise hub_error(error, repository, next(iter(files)), token) from error
    return Published(Repository(name, commit.oid), str(commit.pr_url or commit.commit_url))
