"""Centered kernel alignment: whether two experts see the same likenesses between tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sere.errors import DataError, InputError
from sere.similarity.accumulator import Accumulator, as_layer, blocks, cached_elements, gram, zeros
from sere.similarity.layer import LayerSimilarity

KernelName = Literal["linear", "rbf", "polynomial"]


class CKA(Accumulator):
    """Accumulates ``HSIC_ij``, the inner products of experts' centered kernels, over windows of tokens.

    Kernels are taken on windows of ``window`` consecutive tokens, whatever the sizes of the updates; tokens
    of an unfinished window wait in a buffer. What an accumulator was fed is one stream: its last window may
    be shorter (of at least two tokens), and merging joins streams at window boundaries. Of an expert whose
    centered kernels all vanish (outputs that are the same for all tokens of a window) no similarity is known:
    NaN.

    Parameters of the kernels: ``bandwidth`` (``rbf``), relative to the root of the mean squared distance of
    the window's tokens; ``degree`` and ``offset`` (``polynomial``), of inner products relative to the
    window's mean squared norm.

    Source: docs/method.md section 3; Kornblith et al., ICML 2019 (arXiv 1905.00414).
    """

    metric = "cka"

    def __init__(
        self,
        E: int,
        *,
        kernel: KernelName,
        window: int,
        bandwidth: float | None = None,
        degree: int | None = None,
        offset: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(E, **options)
        values = {"bandwidth": bandwidth, "degree": degree, "offset": offset}
        self._kernel_parameters = {name: value for name, value in values.items() if value is not None}
        self.parameters = {"kernel": kernel, "window": window, **self._kernel_parameters}
        self._kernel = kernel
        self._window = window
        self._waiting: Tensor | None = None
        self._filled = 0
        self._sums = {"hsic": zeros(E)}

    def state(self) -> dict[str, Tensor]:
        """Return everything that was accumulated, with the tokens of the unfinished window."""
        waiting = (
            torch.empty(self.num_experts, 0, 0, device="cpu")
            if self._waiting is None
            else self._waiting[:, : self._filled].cpu()
        )
        return super().state() | {"cka.waiting": waiting.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where ``state`` was taken; what was accumulated here is replaced.

        Raises:
            InputError: The state is of another metric or E, or its window is longer than this one's.
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
            raise DataError("cka: one token has no likeness to others; expected at least 2 tokens")
        hsic = sums["hsic"]
        norms = hsic.diagonal().sqrt()
        norms = norms.masked_fill(norms == 0, torch.nan)
        return as_layer(hsic / norms[:, None] / norms[None, :])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of rows, multiplied in the inputs' dtype, as float64."""
    product = x @ y.transpose(1, 2)
    return (product.cpu() if product.device.type == "mps" else product).double()


def _linear(Y: Tensor) -> Tensor:
    # Centring the tokens first changes the centered kernel in nothing but its rounding.
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
