"""The hub's own client, and what its errors mean to a user."""

from __future__ import annotations

from typing import Any

from sere.errors import HubError, MissingDependency, how_to_install
from sere.hub.names import Repository

_LOG_IN = "log in with: hf auth login, or set HF_TOKEN"


def load_client() -> Any:
    """Return the package ``huggingface_hub``.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(f"the hub needs Transformers: {how_to_install('transformers')}") from error
    return huggingface_hub


def hub_error(error: Exception, repository: Repository, filename: str, token: str | None) -> HubError:
    """Return the error that says what went wrong on the way from or to the hub, and what to do.

    Args:
        error: What the client raised: network, name, permission and cache errors of many kinds.
        repository: What was asked of it.
        filename: The file in it that was wanted.
        token: The access token that was given, if not that of the environment.
    """
    return HubError(f"{repository.name}: {_what_to_do(error, repository, filename, token)}")


def refuse_offline(repository: Repository) -> None:
    """Refuse what only the hub itself can do while the environment forbids to ask it.

    Raises:
        HubError: HF_HUB_OFFLINE is set.
    """
    if load_client().constants.is_offline_mode():
        raise HubError(f"{repository.name}: this needs the hub, but HF_HUB_OFFLINE is set; unset it")


def _what_to_do(error: Exception, repository: Repository, filename: str, token: str | None) -> str:
    from huggingface_hub import constants, errors

    name, hub = repository.name, f"the hub ({constants.ENDPOINT})"
    file = f"{filename} of revision {repository.revision or constants.DEFAULT_REVISION!r}"
    if isinstance(error, errors.HFValidationError):
        return f"expected a repository's name like 'owner/name' ({_line(error)})"
    if isinstance(error, errors.GatedRepoError):
        return f"is gated: ask for access on its page on {hub}, then {_LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) == 401:
        return (
            f"{hub} has no such repository, or it is private and {_who(token)} may not use it; check the "
            f"name, and for a private one {_LOG_IN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{hub} has no revision {repository.revision!r} of it; give a branch, tag or commit that exists"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{hub} has no {file}; give a repository that sere table push filled"
    if _status(error) == 403:
        return f"{_who(token)} may not write to it on {hub}; use a token with write access ({_LOG_IN})"
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.is_offline_mode():
        return (
            f"HF_HUB_OFFLINE is set, and the local cache has no {file}; unset it, or run once with a "
            f"network: sere table pull {name}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{hub} cannot be reached ({_line(error)}), and the local cache has no {file}; check the network "
            "and HF_ENDPOINT, or give a file"
        )
    return f"the transfer of {filename} from or to {hub} failed ({_line(error)}); run it again"


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _who(token: str | None) -> str:
    """Return whose rights counted, for the middle of a sentence."""
    from huggingface_hub import get_token

    return "your token" if token or get_token() else "you, without a token,"


def _line(error: BaseException) -> str:
    """Return the text of what an error began with as one line; its kind if it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
