"""A module is acted on after its import, whenever that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.vllm.programs import run_program


@pytest.mark.parametrize(
    "order",
    [
        "watch(); import late",
        "import late; watch()",
        # The module asks for the hook itself; it is acted on when the next import begins.
        "builtins.watch = watch; import early as late; import another",
        "watch(); watch(); import late",
    ],
    ids=["before", "afterward", "meanwhile", "twice"],
)
def test_acts_after_the_import(tmp_path: Path, order: str) -> None:
    """Whether asked before, during or after a module's import, the hook sees the complete module."""
    (tmp_path / "late.py").write_text("value = 1\n")
    (tmp_path / "another.py").write_text("")
    (tmp_path / "early.py").write_text("watch('early')\nvalue = 1\n")
    run_program(
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
    run_program(
        "import builtins, sys; sys.path.insert(0, '.')\n"
        "from sere.integrations.vllm.import_hook import after_import\n"
        "seen = []\n"
        "builtins.watch = lambda name: after_import(name, seen.append)\n"
        "watch('nowhere'); watch('broken')\n"
        "for name, error in (('nowhere', ModuleNotFoundError), ('broken', OSError)):\n"
        "    try: __import__(name)\n"
        "    except error: continue\n"
        "    raise AssertionError(name)\n"
        "try: import nowhere_either\n"
        "except ModuleNotFoundError: pass\n"
        "assert not seen\n",
        tmp_path,
    )
