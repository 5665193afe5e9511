"""Re-routing is in place however early vLLM loads its plug-ins, and can be switched off."""

from __future__ import annotations

import logging

import pytest

from tests.support.vllm.programs import run_program

EARLY = """
import sys
from vllm.plugins import load_general_plugins
{load}
assert "vllm.engine.arg_utils" not in sys.modules, "registering imports the engine"
assert "vllm.v1.worker.worker_base" not in sys.modules, "registering imports the workers"
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.worker_base import WorkerBase
for method in (EngineArgs.create_engine_config, WorkerBase.__init__):
    assert hasattr(method, "sere"), f"{{method}} is not wrapped"
"""


@pytest.mark.vllm
def test_plug_ins_loaded_before_the_engine() -> None:
    """Loaded before vLLM's engine is imported, the plug-in imports nothing and wraps what comes later."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    run_program(
        EARLY.format(load="from sere.integrations.vllm.plugin import register; register(); register()")
    )


def test_kill_switch_is_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With ``SERE_DISABLE=1`` registering does nothing, not even import vLLM, and says so."""
    from sere.integrations.vllm.plugin import register

    monkeypatch.setenv("SERE_DISABLE", "1")
    with caplog.at_level(logging.INFO, logger="vllm.sere"):
        register()
    assert "switched off by SERE_DISABLE" in caplog.text


@pytest.mark.parametrize(
    ("value", "disabled"),
    [("1", True), ("true", True), ("YES", True), ("maybe", True),
     ("", False), ("0", False), ("false", False), ("False", False), ("no", False), ("off", False)],
)  # fmt: skip
def test_words_of_the_kill_switch(
    value: str, disabled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Yes and no are understood in their usual words; another word disables, with a warning."""
    from sere.integrations.vllm import plugin

    waiting: list[str] = []
    monkeypatch.setattr(plugin, "after_import", lambda name, _act: waiting.append(name))
    monkeypatch.setenv("SERE_DISABLE", value)
    with caplog.at_level(logging.WARNING, logger="vllm.sere"):
        plugin.register()
    assert bool(waiting) != disabled
    assert ("expected 1 or 0, got 'maybe'; treating it as 1" in caplog.text) == (value == "maybe")


@pytest.mark.vllm
def test_kill_switch() -> None:
    """With ``SERE_DISABLE=1`` registering wraps nothing; without, registering twice wraps once."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    run_program(
        "import os; os.environ['SERE_DISABLE'] = '1'\n"
        "from sere.integrations.vllm.plugin import register\n"
        "from vllm.engine.arg_utils import EngineArgs\n"
        "register()\n"
        "assert not hasattr(EngineArgs.create_engine_config, 'sere')\n"
        "os.environ['SERE_DISABLE'] = '0'\n"
        "register(); first = EngineArgs.create_engine_config; register()\n"
        "assert EngineArgs.create_engine_config is first and hasattr(first, 'sere')\n"
    )
