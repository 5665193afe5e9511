"""Products in float32 on a CPU that has no instructions for bfloat16, where PyTorch's own are slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# With fewer rows a product waits for its weights, and making them float32 takes longer than is saved.
_LEAST_ROWS = 8
# So many weights are float32 at a time: 64 MiB.
_BLOCK = 2**24


def emulates_bfloat16() -> bool:
    """Return whether PyTorch emulates products of bfloat16 on this CPU.

    That is what its library for products (oneDNN) says of the CPU. Where the library is missing, or is not
    asked like this, it is not known, and the answer is no.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and not supported()


def float32_products(device: torch.device | str = "cpu") -> AbstractContextManager[object]:
    """Compute the products of bfloat16 that this CPU would emulate in float32 while the block runs.

    Each is rounded once, to bfloat16. Weights become float32 in blocks of 64 MiB, and this needs no other
    memory for them. Products of batches of matrices, and of weights that need gradients, are left alone.

    Args:
        device: Where the model computes. On another than the CPU, and on a CPU with the instructions, nothing
            changes.
    """
    return _Float32Products() if multiplies_in_float32(device, torch.bfloat16) else nullcontext()


def multiplies_in_float32(device: torch.device | str, dtype: torch.dtype | None) -> bool:
    """Return whether passes of a model in ``dtype`` on ``device`` compute their products in float32 instead.

    Args:
        device: Where the model computes.
        dtype: The model's; None if it is not known yet, so that it may be bfloat16.
    """
    return dtype in (None, torch.bfloat16) and torch.device(device).type == "cpu" and emulates_bfloat16()


def where_computed(device: torch.device | str, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Return on what kind of device passes compute and how they round, for provenance and to tell runs apart.

    Args:
        device: Where the model computes.
        dtype: The model's; None if it is not known yet, so that it may be bfloat16.

    Returns:
        JSON-ready: ``device`` and, where products of bfloat16 are computed in float32, ``bfloat16_products``.
    """
    # Which of several GPUs does not matter; a GPU and a CPU round differently.
    where = {"device": torch.device(device).type}
    return where | ({"bfloat16_products": "float32"} if multiplies_in_float32(device, dtype) else {})


class _Float32Products(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        product, given = _PRODUCTS.get(func), dict(kwargs or {})
        found = product(*args, **given) if product is not None and _is_for_us(args) else None
        return func(*args, **given) if found is None else found


def _is_for_us(operands: tuple[Any, ...]) -> bool:
    """Whether a product's first two operands are bfloat16 on the CPU, with enough rows to gain."""
    # Subclasses, such as quantized weights, compute in their own way.
    if len(operands) < 2 or any(type(one) not in (Tensor, nn.Parameter) for one in operands[:2]):
        return False
    rows, weight = operands[:2]
    return (
        rows.device.type == weight.device.type == "cpu"
        and rows.dtype is weight.dtype is torch.bfloat16
        and rows.dim() > 1
        and rows.numel() >= _LEAST_ROWS * rows.shape[-1]
        and not (torch.is_grad_enabled() and weight.requires_grad)
    )


def _matmul(rows: Tensor, weight: Tensor, **options: Any) -> Tensor | None:
    """Return ``rows @ weight`` for a matrix of weights; None if this is not for us."""
    return None if options or weight.dim() != 2 else _linear(rows, weight.mT)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor | None:
    """Return ``rows @ weight.T + bias``; None if this is not for us."""
    if options or weight.dim() != 2:
        return None
    if not torch.is_grad_enabled():
        return _wide_linear(rows, weight, bias)
    if bias is not None and bias.requires_grad:
        return None
    found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return found


def _wide_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``[..., O]`` from rows ``[..., I]`` and weights ``[O, I]``, in float32 before it is rounded."""
    wide = rows.float()
    size = max(1, _BLOCK // max(1, weight.shape[1]))
    ends = range(0, max(1, len(weight)), size)
    biases = [None if bias is None else bias[first : first + size].float() for first in ends]
    blocks = [
        linear(wide, weight[first : first + size].float(), one).to(rows.dtype)
        for first, one in zip(ends, biases, strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


class _Linear(torch.autograd.Function):
    """Keeps the weights as they are for the backward pass, not those in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _wide_linear(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _wide_linear(gradients[0], weight.mT), None, None


def _grouped(
    rows: Tensor, weight: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor | None:
    """Return each group of rows times the group's matrix; None if this is not for us."""
    plain = rows.dim() == 2 and weight.dim() == 3 and bias is None and out_dtype in (None, rows.dtype)
    if offs is None or not plain:
        return None
    if not torch.is_grad_enabled():
        return _by_groups(rows, weight, offs)
    found: Tensor = _Grouped.apply(rows, weight, offs)  # type: ignore[no-untyped-call]
    return found


class _Grouped(torch.autograd.Function):
    """The same for groups of rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(weight, ends)
        return _by_groups(rows, weight, ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, ends = ctx.saved_tensors
        return _by_groups(gradients[0], weight.mT, ends), None, None


def _by_groups(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return ``[T, N]`` from rows ``[T, K]`` sorted by group, ``[G, K, N]`` and each group's end."""
    out, first = rows.new_zeros(len(rows), weight.shape[-1]), 0
    for matrix, end in zip(weight, ends.tolist(), strict=True):
        if end > first:
            group = rows[first:end]
            few = end - first < _LEAST_ROWS
            out[first:end] = group @ matrix if few else _wide_linear(group, matrix.mT)
            first = end
    return out


_PRODUCTS: dict[Any, Callable[..., Tensor | None]] = {
    torch.nn.functional.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
    torch._grouped_mm: _grouped,
}
