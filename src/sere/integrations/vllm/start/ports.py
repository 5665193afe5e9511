"""The ports on which an engine's workers are to serve metrics, before any process is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sere.errors import ConfigError
from sere.integrations.vllm.plugin_config import MOST_PORTS

_OWN_FILES = Path("/proc/self/fd")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def check_ports(first: int | None, engines: int) -> None:
    """Refuse ports that not all data-parallel engines can have, or that the server has reserved for itself.

    vLLM's server reserves its own port when it starts and opens it when the model is loaded. Until then
    another program can open the same port, and the server would end after the whole start.

    Args:
        first: The setting ``metrics_port``.
        engines: How many data-parallel engines take a port each, one after the other.

    Raises:
        ConfigError: The text says which ports are expected.
    """
    if first is None:
        return
    if first + engines - 1 > MOST_PORTS:
        raise ConfigError(
            f"metrics_port: expected at most {MOST_PORTS + 1 - engines}, because each of {engines} "
            f"data-parallel engines takes the next port, got {first}"
        )
    reserved = set(_reserved()) & set(range(first, first + engines))
    if reserved:
        raise ConfigError(
            f"metrics_port: expected another port than the server's own, but this process has "
            f"{min(reserved)} already, as with --port; choose another one"
        )


def _reserved() -> Iterator[int]:
    """Yield the ports of this process's TCP sockets, where the system can tell."""
    with suppress(OSError):
        for file in _OWN_FILES.iterdir():
            with suppress(OSError):
                if file.is_socket():
                    with socket.socket(fileno=os.dup(int(file.name))) as one:
                        if one.family in _FAMILIES and one.type == socket.SOCK_STREAM:
                            yield one.getsockname()[1]
