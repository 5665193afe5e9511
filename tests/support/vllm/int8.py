"""Which builds of vLLM compute INT8 experts on a CPU."""

from __future__ import annotations

import pytest
import torch


def needs_int8_kernel() -> None:
    """Skip a test where vLLM has no such kernel: it has two builds for CPUs, and that for AVX2 lacks it."""
    from vllm import _custom_ops

    assert _custom_ops is not None, "imported for what it registers"
    if not hasattr(torch.ops._C, "convert_weight_packed"):
        pytest.skip("vLLM's build for CPUs without AVX-512 has no kernel for INT8 experts")
