"""The settings of re-routing: one frozen, validated object that every integration takes."""

from __future__ import annotations

import json
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from sere.errors import ConfigError, did_you_mean

Targets = Literal["primary", "active"]
Merge = Literal["none", "same", "distinct", "sentinel"]
Phases = Literal["decode", "all"]
Backend = Literal["auto", "reference", "torch", "cpu", "cuda"]

# Kernels take both numbers as int32.
MOST_INT = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RerouteConfig:
    """How to re-route; docs/method.md section 4 defines each setting.

    Attributes:
        select_top_k: S, slots per token that are primary; 1 to ``MOST_INT``. K or more re-routes nothing.
        threshold: ρ, minimum similarity at which an expert may be replaced; at least 0.
            Compared in float32, like the similarities.
        min_active: Minimum number of primary experts per layer and step, at most ``MOST_INT``; 0 for none.
        keep: Experts that are never replaced: ``{layer index: expert ids}``.
        targets: Replace by the most similar ``"primary"`` expert (the paper) or ``"active"`` one.
        use_scale: Multiply the weight of a re-routed slot by the table's ``scale``.
        merge: What to do with an expert that a row holds twice.
        sentinel: The id that freed slots get with ``merge="sentinel"``.
        phases: Re-route ``"decode"`` steps only, or prefill as well (``"all"``).
        backend: Which implementation of the operation; ``"auto"`` chooses by device.
        table: Path of the similarity table, for integrations that take all settings in one mapping.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    select_top_k: int
    threshold: float = 0.0
    min_active: int = 0
    keep: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    targets: Targets = "primary"
    use_scale: bool = False
    merge: Merge = "none"
    sentinel: int | None = None
    phases: Phases = "decode"
    backend: Backend = "auto"
    table: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("select_top_k", 1), ("min_active", 0)):
            object.__setattr__(self, name, _integer(name, getattr(self, name), least=least))
        object.__setattr__(self, "threshold", _threshold(self.threshold))
        _check_choice("targets", self.targets, get_args(Targets))
        _check_choice("merge", self.merge, get_args(Merge))
        _check_choice("phases", self.phases, get_args(Phases))
        _check_choice("backend", self.backend, get_args(Backend))
        if not isinstance(self.use_scale, bool):
            raise ConfigError(f"use_scale: expected true or false, got {self.use_scale!r}")
        check_sentinel(self.merge, self.sentinel)
        if self.table is not None and not isinstance(self.table, str | os.PathLike):
            raise ConfigError(f"table: expected a path, got {self.table!r}")
        object.__setattr__(self, "keep", _normalized_keep(self.keep))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping, as JSON gives it.

        Raises:
            ConfigError: A key is unknown (the text names the nearest valid one), ``select_top_k`` is
                missing, or a value is invalid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"settings: expected a mapping of names to values, got {type(values).__name__}")
        names = {f.name for f in fields(cls)}
        for key in values:
            if key not in names:
                raise ConfigError(f"unknown setting {key!r}{did_you_mean(str(key), names)}")
        if "select_top_k" not in values:
            raise ConfigError("select_top_k is missing: say how many slots per token stay primary, e.g. 2")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build from a JSON object in a string.

        Raises:
            ConfigError: The text is not a JSON object, or a setting is invalid.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"settings: not valid JSON ({error})") from error
        return cls.from_mapping(values)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Build from a JSON file.

        Raises:
            ConfigError: The file cannot be read, is not a JSON object, or a setting is invalid.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"settings file {os.fspath(path)!r} cannot be read: {error}") from error
        return cls.from_json(text)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings as a JSON-ready mapping; ``from_mapping`` reads it back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["keep"] = {str(layer): list(ids) for layer, ids in self.keep.items()}
        return values


def check_sentinel(merge: str, sentinel: int | None) -> None:
    """Refuse a sentinel without ``merge="sentinel"``, the merge without one, and one that is not an int32."""
    if merge == "sentinel" and (not isinstance(sentinel, int) or isinstance(sentinel, bool)):
        raise ConfigError(
            f"sentinel: merge='sentinel' needs the id for freed slots, e.g. -1; got {sentinel!r}"
        )
    # Ids may be int32, in which a larger number would wrap around to the id of a real expert.
    if merge == "sentinel" and sentinel is not None and not -(2**31) <= sentinel < 2**31:
        raise ConfigError(f"sentinel: expected an id in the range of int32, e.g. -1; got {sentinel}")
    if merge != "sentinel" and sentinel is not None:
        raise ConfigError(
            f"sentinel: given ({sentinel!r}) but merge is {merge!r}; set merge='sentinel' or omit sentinel"
        )


_MOST_FLOAT = sys.float_info.max


def _integer(name: str, value: object, *, least: int) -> int:
    try:
        number = as_integer(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ConfigError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if number > MOST_INT:
        raise ConfigError(f"{name}: expected an integer of at most {MOST_INT}, got {value!r}")
    return number


def _threshold(value: object) -> float:
    number = value
    if not isinstance(value, int | float) and isinstance(value, Real):
        # Numpy's numbers, as Python's own.
        number = float(value)
    # No infinity, which JSON cannot carry; nan is in no range.
    if not isinstance(number, int | float) or isinstance(value, bool) or not 0 <= number <= _MOST_FLOAT:
        raise ConfigError(f"threshold: expected a number of at least 0 (a similarity), got {value!r}")
    return number


def _check_choice(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(f"{name}: got {value!r}{did_you_mean(str(value), valid)}")


def _normalized_keep(keep: object) -> Mapping[int, tuple[int, ...]]:
    if not isinstance(keep, Mapping):
        raise ConfigError(f"keep: expected {{layer index: [expert ids]}}, got {keep!r}")
    result: dict[int, tuple[int, ...]] = {}
    for layer, experts in keep.items():
        try:
            # Keys in JSON are strings.
            index = int(layer) if isinstance(layer, str) else as_integer(layer)
        except (TypeError, ValueError):
            raise ConfigError(
                f"keep: expected {{layer index: [expert ids]}}, got {layer!r}: {experts!r}"
            ) from None
        if index < 0:
            raise ConfigError(f"keep: layer and expert ids start at 0, got {layer!r}: {experts!r}")
        if index in result:
            raise ConfigError(f"keep: layer {index} is named twice; give its experts in one list")
        result[index] = _expert_ids(index, experts)
    return MappingProxyType(dict(sorted(result.items())))


def _expert_ids(layer: int, experts: object) -> tuple[int, ...]:
    if not isinstance(experts, Iterable) or isinstance(experts, str | bytes | Mapping):
        raise ConfigError(
            f"keep: layer {layer}: expected a list of expert ids, e.g. [3, 17]; got {experts!r}"
        )
    ids = set()
    for expert in experts:
        try:
            ids.add(as_integer(expert))
        except TypeError:
            raise ConfigError(
                f"keep: layer {layer}: expected expert ids (integers), got {expert!r}"
            ) from None
        if min(ids) < 0:
            raise ConfigError(f"keep: layer and expert ids start at 0, got expert {expert} of layer {layer}")
    return tuple(sorted(ids))


def as_integer(value: Any) -> int:
    """Return an integer of any kind, also numpy's, as a Python int.

    Raises:
        TypeError: It is not an integer; True and False are not.
    """
    if isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value}")
    return operator.index(value)
