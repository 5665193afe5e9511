"""The ceilings of this machine, measured with the expert kernel of an engine where there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from sere.integrations.vllm.start.versions import engine_device, engine_version
from sere.step_time import Ceilings, measure
from sere.step_time.ceilings import Run

_SERVED = (torch.bfloat16, torch.float16)


def measure_here(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16, threads: int | None = None
) -> Ceilings:
    """Return the ceilings of this machine; see `sere.step_time.measure`.

    Args:
        device: ``"cpu"`` or a CUDA device.
        dtype: Of the weights. A CPU's expert kernel is vLLM's own, if vLLM's CPU build is installed and
            serves this dtype: PyTorch's products may be twice as fast, or slower.
        threads: Of a CPU; None for PyTorch's number.
    """
    served = (
        device == "cpu" and dtype in _SERVED and engine_version() is not None and engine_device() == "cpu"
    )
    return measure(device, dtype, threads, kernel=vllm_kernel if served else None)


def vllm_kernel(hidden: Tensor, up: Tensor, down: Tensor) -> Run:
    """Return what runs vLLM's expert kernel of a CPU on one expert.

    Args:
        hidden: ``[rows, H]``.
        up: Gate and up projection, ``[2 W, H]``.
        down: Down projection, ``[H, W]``.
    """
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    packed_up, packed_down = (cpu_prepack_moe_weight(weight[None], isa) for weight in (up, down))
    ids = torch.zeros(len(hidden), 1, dtype=torch.int32)
    weights = torch.ones(len(hidden), 1)
    out = torch.empty_like(hidden)

    def run() -> Tensor:
        cpu_fused_moe(out, hidden, packed_up, packed_down, None, None, weights, ids, "silu", isa, False)
        return out

    return run
