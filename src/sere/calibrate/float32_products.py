"""Products in float32 on a CPU that has no instructions for 16-bit numbers, where PyTorch's own are slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# With fewer rows a product waits for its weights, and making them float32 takes longer than is saved.
_LEAST_ROWS = 8


def emulated_dtypes() -> frozenset[torch.dtype]:
    """Return the 16-bit dtypes that this CPU has no instructions for: PyTorch emulates their products.

    Empty where PyTorch's library for products (oneDNN) is missing: then it is not known.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return frozenset(dtype for dtype, is_supported in supported.items() if not is_supported())


def float32_products() -> AbstractContextManager[object]:
    """Compute the products that this CPU would emulate in float32 while the block runs.

    Each is rounded once, to the dtype that it has. Weights become float32 for one product at a time, which is
    all the memory that this needs. Products whose weights need gradients are left alone. On a CPU with the
    instructions, and on a GPU, nothing changes.
    """
    dtypes = emulated_dtypes()
    return _Float32Products(dtypes) if dtypes else nullcontext()


class _Float32Products(TorchFunctionMode):
    def __init__(self, dtypes: frozenset[torch.dtype]) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        product = _PRODUCTS.get(func)
        if product is None or not self._emulated(args):
            return func(*args, **(kwargs or {}))
        found = product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found

    def _emulated(self, operands: tuple[Any, ...]) -> bool:
        """Whether the first two operands are of an emulated dtype, with enough rows to gain."""
        if len(operands) < 2 or not all(isinstance(one, Tensor) for one in operands[:2]):
            return False
        rows, weight = operands[:2]
        return (
            rows.device.type == "cpu"
            and rows.dtype in self.dtypes
            and weight.dtype == rows.dtype
            and rows.dim() > 1
            and rows.numel() >= _LEAST_ROWS * rows.shape[-1]
        )


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _matmul(rows: Tensor, weight: Tensor, **options: Any) -> Tensor | None:
    """Return a product of matrices or of batches of them; None if this is not for us."""
    if options:
        return None
    if weight.dim() == 2 and not _needs_gradient(weight):
        return _linear(rows, weight.mT)
    return torch.matmul(rows.float(), weight.float()).to(rows.dtype)


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Return ``rows @ weight.T + bias``; None if this is not for us."""
    if _needs_gradient(weight, bias):
        return None
    found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    """Keeps the weights as they are for the backward pass, not those in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(rows.float(), weight.float(), None if bias is None else bias.float()).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return (gradient.float() @ weight.float()).to(gradient.dtype), None, None


def _grouped(
    rows: Tensor, weight: Tensor, *, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor | None:
    """Return each group of rows times the group's matrix; None if this is not for us."""
    plain = rows.dim() == 2 and weight.dim() == 3 and bias is None and out_dtype in (None, rows.dtype)
    if offs is None or not plain or _needs_gradient(weight):
        return None
    found: Tensor = _Grouped.apply(rows, weight, offs)  # type: ignore[no-untyped-call]
    return found


class _Grouped(torch.autograd.Function):
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
            wide = group.float() @ matrix.float() if end - first >= _LEAST_ROWS else group @ matrix
            out[first:end] = wide
            first = end
    return out


_PRODUCTS: dict[Any, Callable[..., Tensor | None]] = {
    torch.nn.functional.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _matmul,
    torch.bmm: _matmul,
    Tensor.mm: _matmul,
    Tensor.bmm: _matmul,
    torch._grouped_mm: _grouped,
}
