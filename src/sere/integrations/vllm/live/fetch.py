"""Ask a server for what its live page shows."""

from __future__ import annotations

import json
from http.client import HTTPException, HTTPResponse
from typing import Any, Self
from urllib.parse import urlsplit

from sere.errors import ConfigError, ServerError
from sere.integrations.vllm.live.connection import Connection
from sere.integrations.vllm.live.page import LIVE, PATH
from sere.integrations.vllm.live.view import FORMAT

API_KEY = "VLLM_API_KEY"
"""The variable of the environment that holds the server's key, as for ``vllm serve``."""

_TIMEOUT_S = 10.0


def live_url(given: str) -> str:
    """Return where a server tells what its live page shows.

    Args:
        given: The server's address, with or without the page's path.

    Raises:
        ConfigError: It is none.
    """
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of an address or a port
        is_address = False
    if not is_address:
        raise ConfigError(f"URL: expected a server's address such as http://127.0.0.1:8000, got {given!r}")
    prefix = parts.path.rstrip("/").removesuffix(PATH.rstrip("/")).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{prefix}{LIVE}"


class LiveServer:
    """A server that is asked for what its live page shows, over one connection for as long as that lasts.

    Of several server processes, which do not know what the others have seen, one answers each time.

    Args:
        url: As `live_url` returns it.
        key: The server's key, if it has one.

    Raises:
        ConfigError: What the environment names as the proxy is no address of one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url
        self._connection = Connection(url, {"Authorization": f"Bearer {key}"} if key else {}, _TIMEOUT_S)

    def fetch(self, since: float = 0.0) -> dict[str, Any]:
        """Return what the live page of the server shows at present.

        Args:
            since: The points of the lines after this moment, in seconds since 1970.

        Raises:
            ServerError: It does not answer, refuses, or is something else; the text says what to do.
        """
        try:
            answer, body = self._connection.get(f"?since={since:.3f}")
            found = json.loads(body) if answer.status == 200 else None
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"{self._url}: the server does not answer ({error}); is it running?") from error
        if answer.status != 200:
            raise ServerError(f"{self._url}: {_why(answer, body)}")
        if not isinstance(found, dict) or (found.get("now") or {}).get("format") != FORMAT:
            raise ServerError(
                f"{self._url}: expected a server with the same version of sere, got another answer"
            )
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _why(answer: HTTPResponse, body: bytes) -> str:
    if answer.status == 401:
        return f"the server asks for its key; set {API_KEY} to it"
    if answer.status == 404:
        return "the server has no routes of sere; start it with sere among VLLM_PLUGINS"
    if answer.status in range(300, 400) and (address := answer.headers.get("Location")):
        return f"the server is at another address, {address.partition('?')[0]}; give that one"
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = answer.reason
    return f"the server answers {answer.status}: {text}"
