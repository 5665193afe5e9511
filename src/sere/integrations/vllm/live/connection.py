"""One connection to a server, kept open from one question to the next."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from sere.errors import ConfigError

_PORTS = {"http": 80, "https": 443}
# No proxy of the environment leads to this machine.
_HERE = ("localhost", "127.0.0.1", "::1")


class Connection:
    """Asks a server over one connection, so that of several processes that share a port the same one answers.

    A connection that was closed is opened again at the next question. The proxy that the environment names
    for the server is used, as by `urllib.request`.

    Args:
        url: What is asked for, of the scheme ``http`` or ``https``.
        headers: Sent with each question.
        timeout_s: Seconds after which a silent server is given up.

    Raises:
        ConfigError: What the environment names as the proxy is no address of one.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        parts = urlsplit(url)
        self._target, self._headers = parts.path, dict(headers)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        proxy = _proxy_of(parts)
        if proxy is None:
            self._connection = _connection(parts.scheme, host, port, timeout_s)
            return
        # To a server with TLS the proxy opens a tunnel; of others it is asked for the complete address.
        scheme = "https" if "https" in (parts.scheme, proxy.scheme) else "http"
        self._connection = _connection(
            scheme, proxy.hostname or "", proxy.port or _PORTS[proxy.scheme], timeout_s
        )
        if parts.scheme == "https":
            self._connection.set_tunnel(host, port, _credentials_of(proxy))
        else:
            self._target = f"{parts.scheme}://{parts.netloc}{parts.path}"
            self._headers |= _credentials_of(proxy)

    def get(self, query: str) -> tuple[HTTPResponse, bytes]:
        """Ask, and return the answer with its body.

        Args:
            query: What follows the path.

        Raises:
            OSError: The server does not answer, or not in time.
            HTTPException: It answers with something other than HTTP.
        """
        was_open = self._connection.sock is not None
        try:
            return self._ask(query)
        except ConnectionError:
            # A server closes connections on which nothing was asked for some seconds, and when it ends.
            if not was_open:
                raise
        return self._ask(query)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, query: str) -> tuple[HTTPResponse, bytes]:
        try:
            self._connection.request("GET", f"{self._target}{query}", headers=self._headers)
            answer = self._connection.getresponse()
            return answer, answer.read()
        except BaseException:
            # Half an answer must not be taken for the beginning of the next one.
            self._connection.close()
            raise


def _connection(scheme: str, host: str, port: int, timeout_s: float) -> HTTPConnection:
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    return kind(host, port, timeout=timeout_s)


def _proxy_of(parts: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment names for a server, or None."""
    host = parts.hostname or ""
    is_near = host in _HERE or proxy_bypass(f"{host}:{parts.port or _PORTS[parts.scheme]}")
    given = None if is_near else getproxies().get(parts.scheme)
    if not given:
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    try:
        is_address = proxy.scheme in _PORTS and proxy.hostname and proxy.port != 0
    except ValueError:  # of a port
        is_address = False
    if not is_address:
        # What was given may hold a password.
        raise ConfigError(
            f"{parts.scheme}_proxy: expected a proxy's address such as http://127.0.0.1:3128, got another "
            "text; set it in the environment, or put the server's name into no_proxy"
        )
    return proxy


def _credentials_of(proxy: SplitResult) -> dict[str, str]:
    """Return the header with the name and password of a proxy's address, if it has them."""
    if proxy.username is None:
        return {}
    both = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(both.encode()).decode()}"}
