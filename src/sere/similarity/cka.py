"""Centered kernel alignment: whether two experts see the same likenesses between tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from sere.errors import DataError, InputError
from sere.similarity.accumulator import Accumulator, as_layer, blocks, cached_elements, gram, zeros
from sere.similarity.layer import LayerSimilarity
from sere.similarity.metric import Metric, Parameter, integer, number, one_of


def definition(outputs: Tensor, *, kernel: str, window: int, **parameters: float) -> Tensor:
    """Return the centered kernel alignment, its HSIC summed over windows of tokens, clamped to [0, 1].

    ``HSIC_ij = Σ_windows trace(C k(Y_i) C k(Y_j))``, ``C = I - 1/w``; the result is
    ``HSIC_ij / sqrt(HSIC_ii HSIC_jj)``, and NaN for an expert whose centered kernels vanish: its rows are the
    same within each window.

    Args:
        outputs: ``Y``, ``[E, T, H]``.
        kernel: ``"linear"``, ``"rbf"`` or ``"polynomial"``.
        window: Tokens per window; the last one may be shorter.
        **parameters: The kernel's: ``bandwidth``; ``degree`` and ``offset``.

    Returns:
        ``[E, E]``, float64, diagonal 1.
    """
    of_window = partial(_DEFINED_KERNELS[kernel], **parameters)
    Y = outputs.double()
    E, T, _ = Y.shape
    hsic = torch.zeros(E, E, dtype=torch.float64, device="cpu")
    for start in range(0, T, window):
        kernels = [_centered_kernel(Y[e, start : start + window], of_window) for e in range(E)]
        for i in range(E):
            for j in range(E):
                hsic[i, j] += torch.trace(kernels[i] @ kernels[j])
    similarity = torch.eye(E, dtype=torch.float64, device="cpu")
    for i, j in combinations(range(E), 2):
        norm = math.sqrt(float(hsic[i, i] * hsic[j, j]))
        similarity[i, j] = similarity[j, i] = float(hsic[i, j]) / norm if norm > 0 else math.nan
    return similarity.clamp(0, 1)


def _centered_kernel(rows: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    w = rows.shape[0]
    if bool((rows == rows[0]).all()):
        return rows.new_zeros(w, w)
    C = torch.eye(w, dtype=rows.dtype, device=rows.device) - 1 / w
    return C @ kernel(rows) @ C


def _linear_kernel(rows: Tensor) -> Tensor:
    """Return ``k(x, y) = ⟨x, y⟩`` of all pairs of rows, ``[w, w]``."""
    return rows @ rows.T


def _rbf_kernel(rows: Tensor, *, bandwidth: float) -> Tensor:
    """Return ``exp(-|x - y|² / (2 bandwidth² m))``, ``[w, w]``.

    ``m`` is the window's mean squared distance over pairs of different tokens.
    """
    w = rows.shape[0]
    squared = torch.stack([(rows - row).square().sum(dim=1) for row in rows])
    mean = float(squared.sum()) / (w * (w - 1)) if w > 1 else 0.0
    return torch.exp(-squared / (2 * bandwidth**2 * mean)) if mean > 0 else torch.ones_like(squared)


def _polynomial_kernel(rows: Tensor, *, degree: int, offset: float) -> Tensor:
    """Return ``(⟨x, y⟩ / s + offset)^degree``, ``[w, w]``; ``s`` is the window's mean squared norm."""
    mean = float(rows.square().sum()) / rows.shape[0]
    inner = rows @ rows.T / mean if mean > 0 else rows @ rows.T
    return (inner + offset) ** degree


_DEFINED_KERNELS: Mapping[str, Callable[..., Tensor]] = {
    "linear": _linear_kernel,
    "rbf": _rbf_kernel,
    "polynomial": _polynomial_kernel,
}


class CKA(Accumulator):
    """Accumulates ``HSIC_ij``, the inner products of experts' centered kernels, over windows of tokens.

    Kernels are taken on windows of ``window`` consecutive tokens, whatever the sizes of the updates; tokens
    of an unfinished window wait in a buffer. All updates of one accumulator are one stream of tokens: its
    last window may be shorter (at least two tokens), and merging joins streams at window boundaries. For an
    expert whose centered kernels all vanish (its outputs are the same for all tokens of a window) no
    similarity is known: NaN.

    Parameters of the kernels: ``bandwidth`` (``rbf``), relative to the root of the mean squared distance of
    the window's tokens; ``degree`` and ``offset`` (``polynomial``), of inner products relative to the
    window's mean squared norm.

    Source: docs/method.md section 3; Kornblith et al., ICML 2019 (arXiv 1905.00414).
    """

    metric = "cka"

    def __init__(
        self,
        num_experts: int,
        *,
        kernel: str,
        window: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **parameters: float,
    ) -> None:
        super().__init__(num_experts, device=device, dtype=dtype)
        self._kernel_parameters = parameters
        self.parameters = {"kernel": kernel, "window": window, **parameters}
        self._kernel = kernel
        self._window = window
        self._waiting: Tensor | None = None
        self._filled = 0
        self._sums = {"hsic": zeros(num_experts)}

    def state(self) -> dict[str, Tensor]:
        """Return everything that was accumulated, with the tokens of the unfinished window."""
        waiting = (
            torch.empty(self.num_experts, 0, 0, device="cpu")
            if self._waiting is None
            else self._waiting[:, : self._filled].cpu()
        )
        return super().state() | {"cka.waiting": waiting.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; what was accumulated here is replaced.

        Raises:
            InputError: The state is of another metric or number of experts, or its window is longer.
        """
        waiting = state.get("cka.waiting")
        if waiting is None or waiting.shape[0] != self.num_experts or waiting.shape[1] >= self._window:
            got = None if waiting is None else list(waiting.shape)
            expected = f"[{self.num_experts}, fewer than {self._window}, H]"
            raise InputError(f"state cka.waiting: expected shape {expected}, got {got}")
        super().load_state({name: value for name, value in state.items() if name != "cka.waiting"})
        self._waiting, self._filled = None, 0
        if waiting.shape[1]:
            self._wait(waiting if self._device is None else waiting.to(self._device))

    def _add(self, outputs: Tensor, *_routing: Tensor) -> None:
        start, t = 0, outputs.shape[1]
        while start < t:
            take = min(self._window - self._filled, t - start)
            part = outputs[:, start : start + take]
            if take == self._window:
                self._sum("hsic", self._hsic(part))
            else:
                self._wait(part)
            start += take

    def _wait(self, part: Tensor) -> None:
        if self._waiting is None:
            shape = (self.num_experts, self._window, part.shape[2])
            self._waiting = torch.empty(shape, dtype=self._dtype, device=part.device)
        end = self._filled + part.shape[1]
        self._waiting[:, self._filled : end] = part
        self._filled = end
        if end == self._window:
            self._sum("hsic", self._hsic(self._waiting))
            self._filled = 0

    def _closed_sums(self) -> dict[str, Tensor]:
        if self._waiting is None or self._filled < 2:
            return self._sums
        return {"hsic": self._sums["hsic"] + self._finite(self._hsic(self._waiting[:, : self._filled]))}

    def _hsic(self, window: Tensor) -> Tensor:
        """Return the inner products of centered kernels of a window ``[E, w, H]``; ``[E, E]``, float64."""
        E, w, H = window.shape
        some = blocks(E, w * H, cached_elements(window.device))
        flat = torch.cat([self._centered_kernels(window[part]).flatten(1) for part in some])
        return gram(flat)

    def _centered_kernels(self, window: Tensor) -> Tensor:
        """Return the centered kernels of some experts' outputs ``[e, w, H]``; ``[e, w, w]``, float64."""
        kernels = KERNELS[self._kernel](window.to(self._dtype), **self._kernel_parameters)
        kernels -= kernels.mean(dim=2, keepdim=True)
        kernels -= kernels.mean(dim=1, keepdim=True)
        # Exactly 0 where rounding would leave something that looks like a kernel.
        constant = (window == window[:, :1]).all(dim=2).all(dim=1)
        return kernels.masked_fill_(constant[:, None, None].to(kernels.device), 0)

    def _similarity(self, sums: dict[str, Tensor]) -> LayerSimilarity:
        if self.tokens < 2:
            raise DataError(
                "cka: expected at least 2 tokens, because one token has no others to compare with; got 1"
            )
        hsic = sums["hsic"]
        norms = hsic.diagonal().sqrt()
        norms = norms.masked_fill(norms == 0, torch.nan)
        return as_layer(hsic / norms[:, None] / norms[None, :])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of rows, multiplied in the inputs' dtype, as float64."""
    product = x @ y.transpose(1, 2)
    return (product.cpu() if product.device.type == "mps" else product).double()


def _linear(Y: Tensor) -> Tensor:
    # Centering the tokens first changes only the rounding of the centered kernel.
    centered = Y - Y.mean(dim=1, keepdim=True)
    return _inner(centered, centered)


def _rbf(Y: Tensor, *, bandwidth: float) -> Tensor:
    gram = _linear(Y)
    norms = gram.diagonal(dim1=1, dim2=2)
    squared = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp_(min=0)
    w = Y.shape[1]
    mean = 2 * norms.sum(dim=1) / (w - 1)
    mean = mean.masked_fill(mean == 0, 1)[:, None, None]
    return torch.exp(-squared / (2 * bandwidth**2 * mean))


def _polynomial(Y: Tensor, *, degree: int, offset: float) -> Tensor:
    # ⟨x+m, y+m⟩ by parts: what tokens have in common must not drown their differences.
    mean = Y.mean(dim=1, keepdim=True)
    centered = Y - mean
    cross = _inner(centered, mean)
    inner = _inner(centered, centered) + cross + cross.transpose(1, 2) + _inner(mean, mean)
    scale = inner.diagonal(dim1=1, dim2=2).mean(dim=1)
    return (inner / scale.masked_fill(scale == 0, 1)[:, None, None] + offset) ** degree


KERNELS: Mapping[str, Callable[..., Tensor]] = {"linear": _linear, "rbf": _rbf, "polynomial": _polynomial}

_WINDOW = Parameter(128, integer(2))
_OF_KERNEL: Mapping[str, Mapping[str, Parameter]] = {
    "linear": {},
    "rbf": {"bandwidth": Parameter(1.0, number(above_zero=True))},
    "polynomial": {"degree": Parameter(3, integer(1)), "offset": Parameter(1.0, number())},
}
_UNKNOWN = "they gave the same output for all tokens of each window"

METRIC = Metric(
    name="cka",
    summary="centered kernel alignment (kernel: linear, rbf, polynomial)",
    definition=definition,
    accumulator=CKA,
    parameters={"kernel": Parameter("linear", one_of(*KERNELS), adds=_OF_KERNEL), "window": _WINDOW},
    unknown=_UNKNOWN,
)

WITH_ONE_KERNEL = tuple(
    Metric(
        name=f"cka_{kernel}",
        summary=f"cka with the {kernel} kernel",
        definition=definition,
        accumulator=CKA,
        parameters={"kernel": Parameter(kernel, one_of(kernel)), "window": _WINDOW, **_OF_KERNEL[kernel]},
        unknown=_UNKNOWN,
    )
    for kernel in KERNELS
)
