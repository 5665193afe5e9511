"""A Transformers model whose decoder layers have weights one at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sere.calibrate.layerwise.tensor_reader import TensorReader
from sere.checkpoints import check_weights, empty_model, load_config, say_unused
from sere.checkpoints.classes import choose_class
from sere.checkpoints.quantization import quantization_in
from sere.checkpoints.transfer import conversions_of, load_into
from sere.checkpoints.weight_files import read_json
from sere.errors import InputError, UnsupportedModel, name_some
from sere.structure import ExpertsLayer, find_experts


class Skeleton:
    """The model of a checkpoint on the meta device, and the means to give parts of it their weights.

    Weights go through Transformers' own loading code, so names and layouts that a release changed (fused
    experts, for one) are converted as `from_pretrained` would.

    Attributes:
        model: The model, in evaluation mode. Buffers that no checkpoint holds (rotary frequencies) are real.
        reader: Reads the tensors of its files.
        device: Where parts get their weights.
        experts: Its experts modules.
        stack: Name of the list of decoder layers, e.g. ``model.layers``.
        layers: The list itself.

    Raises:
        InputError: The folder is not a complete checkpoint.
        UnsupportedModel: The checkpoint is quantized, has no experts modules, or has them outside one
            list of decoder layers.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> None:
        self.reader = TensorReader(path)
        self.device = torch.device(device)
        self.model = _empty_model(self.reader, dtype, self.device, trust_remote_code)
        self.experts = find_experts(self.model)
        self.stack = stack_of(self.model, self.experts)
        layers = self.model.get_submodule(self.stack)
        assert isinstance(layers, nn.ModuleList)  # stack_of returns nothing else
        self.layers = layers
        self._conversions = conversions_of(self.model)
        self._names: dict[int | None, list[str]] = {}
        self._stand_ins: dict[int | None, dict[str, str]] = {}
        self._sort_names()

    def load_rest(self) -> None:
        """Load the weights outside the decoder layers: embeddings, norms; no output head, no other tower."""
        self._load(None)

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Give one decoder layer its weights while the block runs.

        Raises:
            InputError: The checkpoint lacks some of them, or their shapes are wrong.
        """
        layer, prefix = self.layers[index], f"{self.stack}.{index}"
        try:
            self._load(index)
            absent = [name for name, value in _saved(layer) if value.is_meta]
            if absent:
                raise InputError(
                    f"{self.reader.path}: no weights for {prefix}.{absent[0]} ({len(absent)} in this "
                    "layer); expected a complete checkpoint of this architecture"
                )
            yield layer
        finally:
            _to_meta(layer)

    def _load(self, part: int | None) -> None:
        """Load the tensors of a part; tied ones may be in the file under another name."""
        self._read(self._names.get(part, []))
        for name, source in self._stand_ins.get(part, {}).items():
            owner, last = _owner(self.model, name)
            other, other_last = _owner(self.model, source)
            owner._parameters[last] = other._parameters[other_last]
            if self._part(source) != (part,):
                _empty(other, other_last)

    def _read(self, names: Iterable[str]) -> None:
        with self.reader as files:
            state = {name: files.lazy(name) for name in names}
            report = load_into(self.model, state, self.device, self._conversions)
        wrong = [*report.mismatched_keys, *report.conversion_errors.items(), *report.error_msgs]
        if wrong:
            raise InputError(f"{self.reader.path}: weights do not fit the config: {wrong[0]}")

    def _sort_names(self) -> None:
        """Sort the names of the checkpoint's tensors by decoder layer; None for those outside the layers."""
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        renamings = [entry for entry in self._conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._conversions if isinstance(entry, WeightConverter)]
        state, prefix = self.model.state_dict(), self.model.base_model_prefix
        sources: dict[str, str] = {}
        # In the loader's order: some renamings apply only once another has been seen.
        for name in sorted(self.reader.files, key=dot_natural_key):
            target, _ = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target = name
            sources[target] = name
            for part in self._part(target):
                self._names.setdefault(part, []).append(name)
        for target, source in _tied(self.model, sources):
            for part in self._part(target):
                self._names.setdefault(part, []).append(sources[source])
                self._stand_ins.setdefault(part, {})[target] = source

    def _part(self, target: str) -> tuple[int | None, ...]:
        """Return the decoder layer of a tensor, None for one outside the layers, nothing for others."""
        parent = self.stack.rpartition(".")[0]
        if (found := re.match(rf"{re.escape(self.stack)}\.(\d+)\.", target)) is not None:
            return (int(found.group(1)),)
        # The own tensors of a module around the layers are needed too: it is called and may use them.
        owner = target.rpartition(".")[0]
        around = not owner or self.stack.startswith(f"{owner}.")
        return (None,) if around or not parent or target.startswith(f"{parent}.") else ()


def stack_of(model: nn.Module, experts: list[ExpertsLayer]) -> str:
    """Return the name of the one list of decoder layers that holds all experts modules.

    Raises:
        UnsupportedModel: There are several such lists, or none.
    """
    stacks = {_outer_list(model, layer.name) for layer in experts}
    if len(stacks) != 1 or None in stacks:
        raise UnsupportedModel(
            f"{type(model).__name__}: expected all experts modules in one list of decoder layers, got "
            f"{name_some(sorted(map(str, stacks)))}; calibrate it in memory (low_memory=False)"
        )
    return str(stacks.pop())


def _outer_list(model: nn.Module, name: str) -> str | None:
    parts = name.split(".")
    for end in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return ".".join(parts[:end])
    return None


def refuse_quantized(path: Path, why: str = "") -> None:
    """Refuse a checkpoint with quantized weights, which are not read layer by layer.

    Args:
        path: The checkpoint folder.
        why: Why it would be read layer by layer, unless that was asked for.

    Raises:
        UnsupportedModel: Its weights are quantized.
    """
    if quantization_in(read_json(path / "config.json")) is not None:
        raise UnsupportedModel(
            f"{path}: {why}quantized weights cannot be read layer by layer; let vLLM run the model (--engine "
            "vllm; in Python: engine='vllm'), or calibrate the unquantized checkpoint (its table fits this "
            "model too)"
        )


def _empty_model(reader: TensorReader, dtype: torch.dtype | None, device: torch.device, trusted: bool) -> Any:
    config = load_config(reader.path, trust_remote_code=trusted)
    refuse_quantized(reader.path)
    if dtype is None and choose_class(config)[1].dtype is None:
        dtype = reader.first_dtype()
    # Checked now, not hours later in the layer whose weights are missing.
    say_unused(reader.path, check_weights(reader.path, trust_remote_code=trusted) or ())
    model = empty_model(reader.path, dtype=dtype, trust_remote_code=trusted)
    _make_buffers(model, device)
    return model


def _make_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that checkpoints do not hold, by the model's own initialization."""
    for _, value in _saved(model):
        value._is_hf_initialized = True  # type: ignore[attr-defined]
    for name, buffer in list(model.named_non_persistent_buffers()):
        owner, _, last = name.rpartition(".")
        real = torch.empty_like(buffer, device=device)
        model.get_submodule(owner).register_buffer(last, real, persistent=False)
    with device:  # whatever the default device is
        model.initialize_weights()


def _saved(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and those buffers that a checkpoint holds."""
    yield from module.state_dict(keep_vars=True).items()


def _tied(model: Any, there: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (tied parameter that the checkpoint lacks, one of the same values that it has)."""
    groups: dict[str, list[str]] = {}
    for target, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        groups.setdefault(source, [source]).append(target)
    for names in groups.values():
        if (found := next((name for name in names if name in there), None)) is not None:
            yield from ((name, found) for name in names if name not in there)


def _to_meta(module: nn.Module) -> None:
    for name, _ in list(_saved(module)):
        _empty(*_owner(module, name))


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a tensor, and the tensor's name there."""
    owner, _, last = name.rpartition(".")
    return module.get_submodule(owner), last


def _empty(owner: nn.Module, name: str) -> None:
    """Replace a tensor by one without values."""
    if name in owner._parameters:
        empty = torch.empty_like(owner.get_parameter(name), device="meta")
        owner._parameters[name] = nn.Parameter(empty, requires_grad=False)
    else:
        owner._buffers[name] = torch.empty_like(owner.get_buffer(name), device="meta")
