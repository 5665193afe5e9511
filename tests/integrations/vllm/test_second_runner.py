"""The tests of steps, under vLLM's second model runner."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integrations.vllm import test_steps

pytestmark = pytest.mark.vllm


def test_steps_of_the_second_runner() -> None:
    """Under the second model runner too each row has the budget of its request, and prompts are exact."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm.second_runner", test_steps.__file__,
         "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
