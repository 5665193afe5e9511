"""Run one decoder layer by the model's own forward pass; the other layers return their input."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.in_memory import forward_arguments
from sere.errors import UnsupportedModel, name_some


class _Done(Exception):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class _Trace:
    """The arguments of decoder layers besides hidden states, in a pass that computes no layer."""

    def __init__(self, changed: bool) -> None:
        self.calls: dict[int, list[Any]] = {}
        self._changed = changed

    def take(self, index: int, others: Any, entering: Tensor) -> Tensor:
        """Record a call; return what the layer passes on."""
        self.calls.setdefault(index, []).append(others)
        return entering * 2 + 1 if self._changed else entering


class LayerRunner:
    """Computes one decoder layer for given hidden states.

    The model itself prepares masks, positions and every other argument of the layer from the token ids, as in
    a complete forward pass. Earlier layers return their input, and the pass ends after the layer asked for.
    That is correct only if each layer runs once and gets only hidden states from earlier layers; the first
    run checks both.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList) -> None:
        """Take over ``model`` for good: its ``layers`` no longer run by themselves."""
        self._model, self._layers = model, layers
        self._arguments = forward_arguments(model)
        self._index = 0
        self._hidden: Tensor | None = None
        self._further: tuple[None, ...] | None = None
        self._parent = next(module for module in model.modules() if layers in module.children())
        self._checked = False
        self._trace: _Trace | None = None
        self._guard()
        for index, layer in enumerate(layers):
            layer.forward = partial(self._forward, index, layer.forward)

    def run(self, index: int, ids: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the hidden states that leave decoder layer ``index``.

        Args:
            index: Its position in the list.
            ids: Token ids of the batch, ``[B, S]``.
            hidden: The hidden states that enter it, ``[B, S, ...]``; None for those
                that the model computes from the ids.

        Raises:
            UnsupportedModel: Layers pass on more than hidden states, or run more than once.
        """
        self._index, self._hidden = index, hidden
        done = self._pass(ids)
        if done is None:
            raise UnsupportedModel(
                f"{type(self._model).__name__}: its forward pass does not call decoder layer {index}"
            )
        output = self._hidden_of(done.output, ids)
        if not self._checked:
            self._check(ids[:1])
            self._checked = True
        return output

    def _pass(self, ids: Tensor) -> _Done | None:
        try:
            with torch.no_grad():
                self._model(input_ids=ids, **self._arguments)
        except _Done as done:
            return done
        except (RuntimeError, NotImplementedError) as error:
            if "meta" in str(error):
                raise _needs_weights(self._model, [*self._without_values()]) from error
            raise
        return None

    def _without_values(self) -> Iterator[str]:
        """Yield the names of the parameters outside the decoder layers that have no values."""
        inside = {id(parameter) for layer in self._layers for parameter in layer.parameters()}
        for name, parameter in self._model.named_parameters():
            if parameter.is_meta and id(parameter) not in inside:
                yield name

    def _guard(self) -> None:
        """Refuse calls of modules without weights: some operations would return arbitrary numbers."""
        for name in self._without_values():

            def refuse(*_: Any, name: str = name) -> None:
                raise _needs_weights(self._model, [name])

            self._model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(refuse)

    def _check(self, ids: Tensor) -> None:
        """Refuse layers that run more than once, or whose other arguments depend on earlier hidden states.

        The model runs twice with layers that return their input, the second time with changed hidden states.
        """
        plain, changed = self._traced(ids, changed=False), self._traced(ids, changed=True)
        for index, calls in plain.calls.items():
            if len(calls) > 1:
                why = f"its forward pass runs decoder layer {index} {len(calls)} times; expected once"
                raise _not_layer_by_layer(self._model, why)
            if not _same(calls, changed.calls.get(index)):
                raise _more_than_hidden(self._model, f"arguments of decoder layer {index}")

    def _traced(self, ids: Tensor, *, changed: bool) -> _Trace:
        self._trace = trace = _Trace(changed)
        handle = self._parent.register_forward_hook(_stop)
        try:
            self._pass(ids)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _not_layer_by_layer(
                self._model, f"its forward pass fails if decoder layers return their input: {error}"
            ) from error
        finally:
            handle.remove()
            self._trace = None
        return trace

    def _forward(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        entering = args[0] if args else kwargs["hidden_states"]
        if self._trace is not None:
            others = [args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}]
            entering = self._trace.take(index, others, entering)
        if index != self._index or self._trace is not None:
            return entering if self._further is None else (entering, *self._further)
        if self._hidden is not None:
            if args:
                args = (self._hidden, *args[1:])
            else:
                kwargs = kwargs | {"hidden_states": self._hidden}
        shared = _more_than_hidden(self._model, "a collection that its decoder layers share")
        values = (*args, *kwargs.values())
        collections = [value for value in values if isinstance(value, dict | list)]
        before = [_held(collection) for collection in collections]
        with ExitStack() as stack:
            for value in values:
                if isinstance(value, UserDict):
                    stack.enter_context(_refusing_what_is_absent(value, shared))
            output = original(*args, **kwargs)
        if any(map(_differ, before, map(_held, collections))):
            raise shared
        raise _Done(output)

    def _hidden_of(self, output: Any, ids: Tensor) -> Tensor:
        self._further = (None,) * (len(output) - 1) if isinstance(output, tuple) else None
        if isinstance(output, tuple):
            others = [value for value in output[1:] if isinstance(value, Tensor | Mapping)]
            if others:
                raise _more_than_hidden(self._model, f"{len(others)} further results")
            output = output[0]
        if not isinstance(output, Tensor) or output.shape[:2] != ids.shape:
            raise _more_than_hidden(self._model, f"{type(output).__name__} instead of [batch, tokens, ...]")
        return output


def _held(collection: Any) -> tuple[Any, ...]:
    """Return the values that a collection holds now."""
    return tuple(collection.values() if isinstance(collection, Mapping) else collection)


def _differ(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether two collections do not hold the very same objects."""
    return len(before) != len(after) or any(x is not y for x, y in zip(before, after, strict=True))


@contextmanager
def _refusing_what_is_absent(mapping: UserDict[Any, Any], error: Exception) -> Iterator[None]:
    """Raise ``error`` if an absent key is read: an earlier layer would have set it.

    Setting a key that no later layer reads is harmless; Gemma 4 does that.
    """
    kind = type(mapping)

    def known(self: Any, key: object) -> bool:
        if key not in self.data:
            raise error
        return True

    def read(self: Any, key: object) -> Any:
        known(self, key)
        return kind.__getitem__(self, key)

    mapping.__class__ = type(kind.__name__, (kind,), {"__contains__": known, "__getitem__": read})
    try:
        yield
    finally:
        mapping.__class__ = kind


def _stop(*call: Any) -> None:
    """End a pass when the module around the decoder layers returns: what follows has no weights."""
    raise _Done(call[-1])


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of nested collections, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _same(a: Any, b: Any) -> bool:
    """Whether all tensors of two nested collections are equal; NaN equals NaN."""
    first, second = _tensors(a), _tensors(b)
    return len(first) == len(second) and all(
        x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(first, second, strict=True)
    )


def _needs_weights(model: nn.Module, names: list[str]) -> UnsupportedModel:
    why = f"its forward pass needs weights beside its decoder layers' own ({name_some(names, 3)})"
    return _not_layer_by_layer(model, why)


def _more_than_hidden(model: nn.Module, what: str) -> UnsupportedModel:
    return _not_layer_by_layer(model, f"a decoder layer passes on {what}; expected only hidden states")


def _not_layer_by_layer(model: nn.Module, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(model).__name__}: {why}, so it cannot be calibrated layer by layer; calibrate it in memory "
        "(low_memory=False)"
    )
