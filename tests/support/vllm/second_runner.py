"""Run tests under vLLM's second model runner, on a CPU, where Triton's interpreter runs its kernels.

    python -m tests.support.vllm.second_runner tests/integrations/vllm/in_engine/test_rows.py

vLLM for CPUs uses Triton only where it has a backend for them, which the released one lacks; the interpreter
needs none.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments; it also fails where no engine used the second runner."""
    os.environ.update({"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"})
    from triton.backends import backends

    # Found to be there, and never asked for anything else.
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))
    failed = int(pytest.main(arguments))
    return failed or int("vllm.v1.worker.cpu.model_runner" not in sys.modules)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
