"""``examples/quickstart.sh`` as a user runs it, with other ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sere.engines.environment import end_session, engine_environment, last_lines
from sere.engines.patience import Patience
from sere.engines.server import _CPU_MAIN, _MAIN, Server
from sere.integrations.vllm.client.admin_key import ADMIN_KEY
from sere.provenance import installed_version
from tests.support.vllm.server import free_port

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "quickstart.sh"
# What it prints last.
_LAST = "sere_layer_distinct_after_total{"
_KEY = "operator"
_END_S = 30


@contextmanager
def quickstart(
    model: Path, folder: Path, metrics_port: int, *, options: Mapping[str, str], seconds: float
) -> Iterator[Server]:
    """Run the script until it has printed the metrics, and end it with its server at the end of the block.

    Args:
        model: The checkpoint's folder.
        folder: Where the script, its commands and its output (``log``) lie.
        metrics_port: Stands for the one in the script; the server's port is a free one.
        options: What the script's variables hold: CALIBRATE, TUNE, SERVE.
        seconds: How long it may take.
    """
    port = free_port()
    text = SCRIPT.read_text(encoding="utf-8").replace("localhost:8000", f"localhost:{port}")
    # A line of statistics a minute is too few for a test; experts are counted for one of them.
    added = {"metrics_port": metrics_port, "log_seconds": 0.001, "count_experts": True}
    settings = json.dumps({"sere": added})
    text = text.replace('{"sere": {"metrics_port": 9400}}', settings).replace("9400", str(metrics_port))
    (folder / "quickstart.sh").write_text(text)
    commands = folder / "bin"
    commands.mkdir()
    # The command `vllm` of the CPU wheel stops: docs/vllm.md, Start.
    main = _CPU_MAIN if installed_version("vllm") is None else _MAIN
    (commands / "vllm").write_text(f'#!/bin/sh\nexec \'{sys.executable}\' -c "{main}" "$@"\n')
    (commands / "sere").write_text(f"#!/bin/sh\nexec '{sys.executable}' -m sere \"$@\"\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    given = dict(options) | {"SERVE": f"{options['SERVE']} --port {port}"}
    environment = engine_environment({}) | given | {
        ADMIN_KEY: _KEY, "VLLM_LOGGING_LEVEL": "INFO", "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "no_proxy": "localhost", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["sh", str(folder / "quickstart.sh"), str(model)],
            stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            server = Server(process, port, log, _KEY)
            _wait(server, seconds)
            yield server
        finally:
            end_session(process, _END_S)


def _wait(server: Server, seconds: float) -> None:
    """Wait until the script has printed the metrics.

    Raises:
        ServerError: The script has ended.
        TimeoutError: It took too long.
    """
    patience = Patience(seconds)
    while patience.lasts():
        server.check()
        if _LAST in server.log.read_text():
            return
        time.sleep(0.5)
    raise TimeoutError(f"{SCRIPT.name} printed no metrics in {seconds:g} s; {last_lines(server.log)}")
