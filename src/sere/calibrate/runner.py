"""Run one decoder layer of a model by the model's own forward pass, the others passed through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.in_memory import forward_arguments
from sere.errors import UnsupportedModel


class _Done(Exception):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class LayerRunner:
    """Computes one decoder layer for given hidden states.

    The model itself prepares masks, positions and every other argument of the layer from the true token
    ids, as in a whole forward pass; layers before the one asked for hand on what they get, and the pass
    ends behind it.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        """Take over ``model`` for good: its ``layers`` no longer run by themselves."""
        self._model = model
        self._arguments = forward_arguments(model)
        self._index = 0
        self._hidden: Tensor | None = None
        self._tuple = False
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index, layer.forward)

    def run(self, index: int, ids: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the hidden states that leave decoder layer ``index``.

        Args:
            index: Its place in the list.
            ids: Token ids of the batch, ``[B, S]``.
            hidden: The hidden states that enter it, ``[B, S, ...]``; None for what the model makes
                of the ids.

        Raises:
            UnsupportedModel: Layers hand more to each other than hidden states.
        """
        self._index, self._hidden = index, hidden
        try:
            with torch.no_grad():
                self._model(input_ids=ids, **self._arguments)
        except _Done as done:
            return self._hidden_of(done.output, ids)
        raise UnsupportedModel(
            f"{type(self._model).__name__}: its forward pass does not call decoder layer {index}"
        )

    def _forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entering = args[0] if args else kwargs["hidden_states"]
        if index != self._index:
            return (entering,) if self._tuple else entering
        if self._hidden is not None:
            if args:
                args = (self._hidden, *args[1:])
            else:
                kwargs = kwargs | {"hidden_states": self._hidden}
        shared = [value for value in (*args, *kwargs.values()) if isinstance(value, dict | list)]
        before = [len(value) for value in shared]
        output = original(*args, **kwargs)
        if [len(value) for value in shared] != before:
            raise _more_than_hidden(self._model, "a collection that its decoder layers share")
        raise _Done(output)

    def _hidden_of(self, output: Any, ids: Tensor) -> Tensor:
        self._tuple = isinstance(output, tuple)
        if isinstance(output, tuple):
            others = [value for value in output[1:] if isinstance(value, Tensor | Mapping)]
            if others:
                raise _more_than_hidden(self._model, f"{len(others)} further results")
            output = output[0]
        if not isinstance(output, Tensor) or output.shape[:2] != ids.shape:
            raise _more_than_hidden(self._model, f"{type(output).__name__} instead of [batch, tokens, ...]")
        return output


def _more_than_hidden(model: nn.Module, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__}: a decoder layer hands on {what}; expected hidden states only, so it cannot "
        "be calibrated layer by layer; calibrate it in memory (low_memory=False)"
    )
