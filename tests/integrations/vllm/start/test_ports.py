"""Ports of metrics that an engine cannot have."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.start import ports
from sere.integrations.vllm.start.ports import check_ports


def test_ports_of_all_engines_exist() -> None:
    """The last of several data-parallel engines needs a port, too; without the setting there is none."""
    check_ports(None, 70000)
    check_ports(65534, 2)
    with pytest.raises(ConfigError, match="expected at most 65534, because each of 2 data-parallel engines"):
        check_ports(65535, 2)


def test_the_servers_own_port() -> None:
    """A port that this process has reserved is refused, though nobody listens on it yet."""
    with socket.socket() as reserved:
        # As vLLM's server does it: another program could open the port all the same.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        for first, engines in ((port, 1), (port - 1, 2)):
            with pytest.raises(
                ConfigError, match=f"another port .* but this process has {port} already, as "
            ):
                check_ports(first, engines)
        check_ports(port - 1, 1)
    check_ports(port, 1)


def test_where_the_system_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a list of a process's own files nothing is refused."""
    monkeypatch.setattr(ports, "_OWN_FILES", Path("/nowhere"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_ports(server.getsockname()[1], 1)
