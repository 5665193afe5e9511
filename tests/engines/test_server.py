"""A ``vllm serve`` of ours: its environment, and how it fails and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.cli import main
from sere.engines.patience import Patience
from sere.engines.server import Server, _environment, serve
from sere.errors import ServerError
from tests.support.patience import HANGS_S
from tests.support.vllm.models import save_model, table_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """Mark the environment of all processes that a test starts."""
    name = f"SERE_TEST_{uuid4().hex}"
    monkeypatch.setenv(name, "1")
    return name


def marked(name: str) -> list[psutil.Process]:
    """Return the living processes that were started with a mark, this one excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and name in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_processor_time_is_of_all_processes(tmp_path: Path) -> None:
    """What a child of the server's first process takes counts, too."""
    busy = """
import sys, time
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
sys.stdin.read()
"""
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        server = Server(process, 1, tmp_path / "log")
        patience = Patience(HANGS_S)
        while server.processor_s() < 0.3:
            assert patience.lasts()
            time.sleep(0.05)
        assert server.resident_bytes() > psutil.Process(process.pid).memory_info().rss
    finally:
        process.communicate()


def test_environment_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plug-ins stay, sere is among them or not, and no key of the user's locks our requests out."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_PLUGINS", "sere,other")
    with_sere, without = _environment({}), _environment(None)
    assert with_sere["VLLM_PLUGINS"] == "other,sere"
    assert "SERE_DISABLE" not in with_sere
    assert (without["VLLM_PLUGINS"], without["SERE_DISABLE"]) == ("other", "1")
    assert "VLLM_API_KEY" not in with_sere | without


def test_server_that_cannot_start(tmp_path: Path, mark: str) -> None:
    """A start that is refused is one error with the end of the log, and no process is left."""
    path = save_model(tmp_path)
    settings = {"table": str(tmp_path / "missing.safetensors"), "select_top_k": 1}
    with (
        pytest.raises(ServerError, match=r"(?s)exited with code 1; the end of its log:.*missing.safetensors"),
        serve(path, settings, tmp_path / "log", "--skip-tokenizer-init", "--enforce-eager"),
    ):
        pass
    assert marked(mark) == []


def test_log_of_a_server_that_cannot_start_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: str
) -> None:
    """What vLLM does not know ends the server; its log lies beside the records, and the error says so."""
    out = tmp_path / "results" / "out.jsonl"
    command = ["bench", "serve", "--preset", "tiny", "--server", "--engine-option", "no-such=1"]
    assert main([*command, "--out", str(out)]) == 1
    log = out.with_name("out.jsonl.server.log")
    assert f"complete logs: {log}" in capsys.readouterr().err
    assert "--no-such" in log.read_text()
    assert list(out.parent.iterdir()) == [log]
    assert marked(mark) == []


def test_server_that_dies(tmp_path: Path, mark: str) -> None:
    """A server whose first process is killed is named as ended, and its other processes end with it."""
    path = save_model(tmp_path)
    settings = {"table": str(table_of(path)), "select_top_k": 1, "log_seconds": 0}
    arguments = ("--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "64", "--max-num-seqs", "4")
    with serve(path, settings, tmp_path / "log", *arguments) as server:
        assert len(marked(mark)) > 1
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="exited with code -9; the end of its log"):
            server.wait(HANGS_S)
    psutil.wait_procs(marked(mark), timeout=HANGS_S)
    assert marked(mark) == []
