"""The ceilings of this machine come from an engine's own expert kernel where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear, silu

from sere.outlook import machine, measure_here


@pytest.mark.parametrize(
    ("version", "built_for", "dtype", "own"),
    [
        ("0.32.0", "cpu", torch.bfloat16, True),
        ("0.32.0", "cpu", torch.float32, False),
        ("0.32.0", "cuda", torch.bfloat16, False),
        (None, "cpu", torch.bfloat16, False),
    ],
    ids=["vllm", "float32", "for GPUs", "no vllm"],
)
def test_the_kernel_is_vllms_where_it_serves(
    monkeypatch: pytest.MonkeyPatch, version: str | None, built_for: str, dtype: torch.dtype, own: bool
) -> None:
    """On a CPU, in 16 bits, with vLLM's CPU build; otherwise PyTorch's products."""
    asked: dict[str, Any] = {}

    def measure(device: str, dtype: torch.dtype, threads: int | None, *, kernel: Any) -> None:
        asked.update(device=device, dtype=dtype, threads=threads, kernel=kernel)

    monkeypatch.setattr(machine, "engine_version", lambda: version)
    monkeypatch.setattr(machine, "engine_device", lambda: built_for)
    monkeypatch.setattr(machine, "measure", measure)
    measure_here("cpu", dtype, 2)
    assert (asked["kernel"] is machine.vllm_kernel) == own
    assert (asked["device"], asked["dtype"], asked["threads"]) == ("cpu", dtype, 2)
    measure_here("cuda", torch.bfloat16)
    assert asked["kernel"] is None


@pytest.mark.vllm
def test_vllms_kernel_computes_the_expert() -> None:
    """What is timed is the gated MLP, within rounding."""
    pytest.importorskip("vllm")
    if machine.engine_device() != "cpu":
        pytest.skip("needs vLLM's CPU build")
    hidden, up, down = (torch.randn(*shape).mul_(0.1).bfloat16() for shape in ((4, 64), (64, 64), (64, 32)))
    gate, value = linear(hidden, up).chunk(2, dim=-1)
    expected = linear(silu(gate) * value, down)
    torch.testing.assert_close(machine.vllm_kernel(hidden, up, down)(), expected, atol=0.02, rtol=0.1)
