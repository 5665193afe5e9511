"""Re-routing is in place however early vLLM's plug-ins are loaded."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(program: str, folder: Path | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.vllm
def test_plug_ins_loaded_before_the_engine() -> None:
    """Loaded before vLLM's engine is imported, the plug-in imports nothing and wraps what comes later."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    run(EARLY.format(load="from sere.integrations.vllm.plugin import register; register(); register()"))


@pytest.mark.parametrize(
    "order",
    [
        "watch(); import late",
        "import late; watch()",
        # The module asks for the hook itself, while it is being imported.
        "builtins.watch = watch; import early; late = early",
        "watch(); watch(); import late",
    ],
)
def test_acts_after_the_import(tmp_path: Path, order: str) -> None:
    """Whether asked before, during or after a module's import, the hook sees the whole module."""
    (tmp_path / "late.py").write_text("value = 1\n")
    (tmp_path / "early.py").write_text("watch('early')\nvalue = 1\n")
    run(
        "import builtins, sys; sys.path.insert(0, '.')\n"
        "from sere.integrations.vllm.import_hook import after_import\n"
        "def watch(name='late'): after_import(name, lambda module: setattr(module, 'seen', module.value))\n"
        f"{order}\n"
        "assert late.seen == 1\n",
        tmp_path,
    )


def test_missing_and_broken_modules(tmp_path: Path) -> None:
    """A module that is not there, or fails, fails as it would without the hook."""
    (tmp_path / "broken.py").write_text("watch('broken')\nraise OSError('mine')\n")
    run(
        "import builtins, sys; sys.path.insert(0, '.')\n"
        "from sere.integrations.vllm.import_hook import after_import\n"
        "seen = []\n"
        "builtins.watch = lambda name: after_import(name, seen.append)\n"
        "watch('nowhere'); watch('broken')\n"
        "for name, error in (('nowhere', ModuleNotFoundError), ('broken', OSError)):\n"
        "    try: __import__(name)\n"
        "    except error: continue\n"
        "    raise AssertionError(name)\n"
        "assert not seen\n",
        tmp_path,
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
    assert ("expected 1 or 0, got 'maybe', which is taken as 1" in caplog.text) == (value == "maybe")
