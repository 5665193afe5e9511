"""Ask a server for what its live page shows."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from sere.errors import ConfigError, ServerError
from sere.integrations.vllm.live.page import LIVE, PATH
from sere.integrations.vllm.live.view import FORMAT

API_KEY = "VLLM_API_KEY"
"""The variable of the environment that holds the server's key, as for ``vllm serve``."""

_TIMEOUT_S = 10.0
# No proxy of the environment leads to this machine.
_HERE = ("localhost", "127.0.0.1", "::1")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def live_url(given: str) -> str:
    """Return where a server tells what its live page shows.

    Args:
        given: The server's address, with or without the page's path.

    Raises:
        ConfigError: It is none.
    """
    text = given if "://" in given else f"http://{given}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"URL: expected a server's address such as http://127.0.0.1:8000, got {given!r}")
    prefix = parts.path.rstrip("/").removesuffix(PATH.rstrip("/")).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{prefix}{LIVE}"


def fetch_live(url: str, key: str | None = None, since: float = 0.0) -> dict[str, Any]:
    """Return what the live page of a server shows at present.

    Args:
        url: As `live_url` returns it.
        key: The server's key, if it has one.
        since: The points of the lines after this moment, in seconds since 1970.

    Raises:
        ServerError: It does not answer, refuses, or is something else; the text says what to do.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}?since={since:.3f}", headers=headers)
    try:
        opener = _DIRECT if urlsplit(url).hostname in _HERE else urllib.request.build_opener()
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ServerError(f"{url}: {_why(error)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"{url}: the server does not answer ({reason}); is it running?") from error
    if not isinstance(found, dict) or (found.get("now") or {}).get("format") != FORMAT:
        raise ServerError(f"{url}: expected a server with the same version of sere, got another answer")
    return found


def _why(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"the server asks for its key; set {API_KEY} to it"
    if error.code == 404:
        return "the server has no routes of sere; start it with sere among VLLM_PLUGINS"
    try:
        text = json.load(error)["error"]
    except (ValueError, KeyError, TypeError, OSError):
        text = error.reason
    return f"the server answers {error.code}: {text}"
