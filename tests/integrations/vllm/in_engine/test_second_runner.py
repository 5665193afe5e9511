"""The tests of rows and of returned experts, under vLLM's second model runner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import HANGS_S

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = pytest.mark.vllm

FILES = [str(Path(__file__).with_name(name)) for name in ("test_rows.py", "test_routed_experts.py")]


def test_steps_of_the_second_runner() -> None:
    """Under the second model runner, too, each row has the budget of its request, and prompts are exact.

    Given tokens are decoded and scored, in parts of prompts and beside them. The experts that it returns for
    replay are those that ran.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm.second_runner", *FILES,
         "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, timeout=HANGS_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
