"""Processes of vLLM that we start: their environment, the end of their log, and how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from sere.integrations.vllm.plugin import DISABLE
from sere.integrations.vllm.plugin_config import KEY

_TAIL = 12


def engine_environment(sere: Any) -> dict[str, str]:
    """Return the environment of a process that runs vLLM, with or without the plug-in.

    Args:
        sere: Settings of re-routing; None for a process that loads nothing of sere into vLLM.
    """
    # vLLM adds the routes only of plug-ins that are named here.
    others = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name not in ("", KEY)]
    plugins = {"VLLM_PLUGINS": ",".join(others if sere is None else [*others, KEY])}
    # In GiB. Without it vLLM on a CPU reserves a share of all memory, and does not start if others hold some.
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    fixed = {"VLLM_NO_USAGE_STATS": "1"}
    return defaults | dict(os.environ) | fixed | plugins | ({DISABLE: "1"} if sere is None else {})


def last_lines(log: Path) -> str:
    """Return the end of a log, for an error text."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(["the end of its log:", *lines[-_TAIL:]])


def end_session(process: subprocess.Popen[Any], seconds: float) -> None:
    """Ask the first process of a session to end; then, or after a while, end what is left of the session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
