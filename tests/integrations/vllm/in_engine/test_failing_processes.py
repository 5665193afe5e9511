"""An engine of several processes that cannot start ends all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sere.errors import (
    ServerError,
)
from tests.support.patience import HANGS_S
from tests.support.vllm.models import table_of
from tests.support.vllm.server import serve
from tests.support.vllm.wrong_tables import cut_off, without_layer

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("fault", ["table cut off", "layer missing", "port taken"])
def test_server_ends(model: Path, tmp_path: Path, fault: str) -> None:
    """``vllm serve`` ends with an exit code and the error in its log, whichever process finds what is wrong.

    A table is read before any process is started, the port of metrics is tried when a worker is made, and a
    layer is missed while it builds the model.
    """
    settings: dict[str, Any] = {"table": str(table_of(model)), "select_top_k": 2}
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        if fault == "table cut off":
            settings["table"] = str(cut_off(model, tmp_path))
            text = "cut off"
        elif fault == "layer missing":
            settings["table"] = str(without_layer(model, tmp_path))
            text = "no similarities for layer 1, only for layers 0"
        else:
            settings["metrics_port"] = other.getsockname()[1]
            text = "cannot be opened"
        flags = ("--enforce-eager", "--skip-tokenizer-init")
        with (
            pytest.raises(ServerError, match=r"exited with code [1-9]"),
            serve(model, settings, tmp_path, *flags),
        ):
            pass
    assert text in (tmp_path / "server.log").read_text()


RIVAL = """
def register():
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    construct = BaseRouter.__init__
    def __init__(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        routing = self._compute_routing
        self._compute_routing = lambda *a, **k: routing(*a, **k)
    BaseRouter.__init__ = __init__
"""


def test_second_plug_in_that_is_installed(model: Path, tmp_path: Path) -> None:
    """Two plug-ins that vLLM found by itself: the worker's error ends the engine and all its processes."""
    (tmp_path / "rival.py").write_text(RIVAL)
    (tmp_path / "rival-1.dist-info").mkdir()
    (tmp_path / "rival-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rival\nVersion: 1\n"
    )
    (tmp_path / "rival-1.dist-info" / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nrival = rival:register\n"
    )
    (tmp_path / "start.py").write_text(
        "from vllm import LLM\n"
        "if __name__ == '__main__':\n"
        f"    LLM({str(model)!r}, skip_tokenizer_init=True, enforce_eager=True, max_model_len=64,\n"
        f"        additional_config={{'sere': {{'select_top_k': 2, 'table': {str(table_of(model))!r}}}}})\n"
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "start.py"],
            cwd=tmp_path, env=_environment(tmp_path), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.wait(timeout=HANGS_S) != 0
            assert not _left_behind(process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert "has been replaced already, by rival" in (tmp_path / "log").read_text()


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join((str(folder), *filter(None, sys.path))),
    }  # fmt: skip


def _left_behind(leader: int) -> list[str]:
    """Return the processes of a session that do not end by themselves, soon after their leader."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    _, left = psutil.wait_procs(found, timeout=HANGS_S)
    return [str(process) for process in left if process.status() != psutil.STATUS_ZOMBIE]
