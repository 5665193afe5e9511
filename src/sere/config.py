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


ActiveExperts = int | float | Literal["auto"] | tuple[tuple[int, int], ...]
"""M: a number of experts, a share of E (a float up to 1), ``"auto"``, or points (rows of the step, M)."""

PAPER = "paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSettings:
    """What may differ from layer to layer; see `RerouteConfig`.

    Attributes:
        select_top_k: S.
        threshold: ρ.
        active_experts: M.

    Raises:
        ConfigError: A value has the wrong type or is out of range.
    """

    select_top_k: int = 1
    threshold: float = 0.0
    active_experts: ActiveExperts = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "select_top_k", _integer("select_top_k", self.select_top_k, least=1))
        object.__setattr__(self, "threshold", _threshold(self.threshold))
        object.__setattr__(self, "active_experts", read_active_experts(self.active_experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RerouteConfig:
    """How to re-route; docs/method.md section 4 defines each setting.

    Attributes:
        select_top_k: S, slots per token that are primary; 1 to ``MOST_INT``. K or more re-routes nothing.
        threshold: ρ, minimum similarity at which an expert may be replaced; at least 0.
            Compared in float32, like the similarities.
        active_experts: M, how many experts a layer reads in a step: a number; a float up to 1 for a share of
            E; points ``((rows, M), ...)`` for steps of so many rows, with a straight line between them;
            ``"auto"`` for what the table's tier says or, without one, for a formula; 0 for the rows' heaviest
            experts alone.
        cap: Whether M is a limit even where the rows' heaviest experts are more than M; otherwise these all
            are read.
        layers: Other values of ``select_top_k``, ``threshold`` and ``active_experts`` for some layers:
            ``{layer index: {"active_experts": 24}}``.
        tier: The tier of the table that ``"auto"`` means: ``"safe"``, ``"balanced"``, ``"fast"``; None for
            ``"balanced"`` if the table has it.
        keep: Experts that are never replaced: ``{layer index: expert ids}``.
        targets: Replace by the most similar ``"primary"`` expert (the paper) or ``"active"`` one.
        use_scale: Multiply the weight of a re-routed slot by the table's ``scale``; None: where it has one.
        merge: What to do with duplicate expert ids within one token's top-k.
        sentinel: The id that freed slots get with ``merge="sentinel"``.
        phases: Re-route ``"decode"`` steps only, or prefill as well (``"all"``).
        backend: Which implementation of the operation; ``"auto"`` chooses by device.
        table: Path of the similarity table, for integrations that take all settings in one mapping.
        preset: ``"paper"`` for the published method: no filling up, no factors; `paper` makes it.

    Raises:
        ConfigError: A value has the wrong type or is out of range, or does not go with the preset.
    """

    select_top_k: int = 1
    threshold: float = 0.0
    active_experts: ActiveExperts = "auto"
    cap: bool = False
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    tier: str | None = None
    keep: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    targets: Targets = "primary"
    use_scale: bool | None = None
    merge: Merge = "none"
    sentinel: int | None = None
    phases: Phases = "decode"
    backend: Backend = "auto"
    table: str | None = None
    preset: Literal["paper"] | None = None

    def __post_init__(self) -> None:
        if self.preset is not None:
            self._take_preset()
        object.__setattr__(self, "select_top_k", _integer("select_top_k", self.select_top_k, least=1))
        object.__setattr__(self, "threshold", _threshold(self.threshold))
        object.__setattr__(self, "active_experts", read_active_experts(self.active_experts))
        object.__setattr__(self, "layers", _normalized_layers(self.layers))
        _check_choice("targets", self.targets, get_args(Targets))
        _check_choice("merge", self.merge, get_args(Merge))
        _check_choice("phases", self.phases, get_args(Phases))
        _check_choice("backend", self.backend, get_args(Backend))
        if self.use_scale is not None and not isinstance(self.use_scale, bool):
            raise ConfigError(f"use_scale: expected true or false, got {self.use_scale!r}")
        self._check_limit()
        check_sentinel(self.merge, self.sentinel)
        if self.table is not None and not isinstance(self.table, str | os.PathLike):
            raise ConfigError(f"table: expected a path, got {self.table!r}")
        object.__setattr__(self, "keep", _normalized_keep(self.keep))

    @classmethod
    def paper(cls, select_top_k: int, threshold: float = 0.0) -> Self:
        """Return the settings of the published method, to the bit.

        Args:
            select_top_k: S.
            threshold: ρ.

        Raises:
            ConfigError: A value is out of range.

        Source: SERE (ICLR 2026, arXiv 2602.07616).
        """
        return cls(select_top_k=select_top_k, threshold=threshold, preset="paper")

    def for_layer(self, index: int) -> LayerSettings:
        """Return the settings of one layer.

        Args:
            index: Decoder-layer index.
        """
        own = {name: getattr(self, name) for name in _OF_A_LAYER}
        return LayerSettings(**own | dict(self.layers.get(index, {})))

    def _take_preset(self) -> None:
        """Set what the preset says; refuse what contradicts it."""
        _check_choice("preset", self.preset, (PAPER,))
        fixed = {"active_experts": 0, "cap": False, "layers": {}, "tier": None, "use_scale": False,
                 "targets": "primary"}  # fmt: skip
        defaults = {f.name: f.default for f in fields(self)} | {"layers": {}}
        for name, value in fixed.items():
            given = getattr(self, name)
            if given != defaults[name] and given != value:
                raise ConfigError(
                    f"{name}: the preset 'paper' has {value!r}, got {given!r}; leave out one of the two"
                )
            object.__setattr__(self, name, value)

    def _check_limit(self) -> None:
        """Refuse a cap without a limit."""
        if not isinstance(self.cap, bool):
            raise ConfigError(f"cap: expected true or false, got {self.cap!r}")
        if self.tier is not None and not isinstance(self.tier, str):
            raise ConfigError(f"tier: expected the name of one of the table's tiers, got {self.tier!r}")
        limits = [self.active_experts, *(own.get("active_experts") for own in self.layers.values())]
        if self.cap and 0 in limits:
            raise ConfigError(
                "cap: needs a number of experts to keep to, got active_experts=0; give one, or leave out cap"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping, as JSON gives it.

        Raises:
            ConfigError: A key is unknown (the text names the nearest valid one), a value is invalid, or
                ``select_top_k`` is missing in the preset ``"paper"``.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"settings: expected a mapping of names to values, got {type(values).__name__}")
        names = {f.name for f in fields(cls)}
        for key in values:
            if key == "min_active":
                raise ConfigError("min_active: is now called active_experts; use that name")
            if key not in names:
                raise ConfigError(f"unknown setting {key!r}{did_you_mean(str(key), names)}")
        if values.get("preset") == PAPER and "select_top_k" not in values:
            raise ConfigError("select_top_k is missing: the preset 'paper' needs it, e.g. 2")
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
        values["active_experts"] = _as_json(self.active_experts)
        values["layers"] = {
            str(index): {name: _as_json(value) for name, value in own.items()}
            for index, own in self.layers.items()
        }
        return values


def _as_json(value: Any) -> Any:
    return [list(point) for point in value] if isinstance(value, tuple) else value


def read_active_experts(value: object) -> ActiveExperts:
    """Return a setting of M in its one form.

    Args:
        value: An integer of at least 0, a float above 0 and up to 1, ``"auto"``, or points (rows, M) in the
            order of the rows, as tuples or lists.

    Raises:
        ConfigError: It is something else.
    """
    if value == "auto":
        return "auto"
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return _points(list(value))
    try:
        return _integer("active_experts", as_integer(value), least=0)
    except TypeError:
        pass
    if isinstance(value, Real) and value is not True and 0 < float(value) <= 1:
        return float(value)
    raise ConfigError(_expected_active_experts(value))


def _expected_active_experts(value: object) -> str:
    return (
        'active_experts: expected a number of experts such as 32, a share of them such as 0.25, "auto", or '
        f"points (rows, experts) such as [[8, 24], [32, 32]], got {value!r}"
    )


def _points(given: list[Any]) -> tuple[tuple[int, int], ...]:
    """Return checked points (rows, M)."""
    try:
        points = tuple((as_integer(rows), as_integer(most)) for rows, most in given)
    except (TypeError, ValueError):
        raise ConfigError(_expected_active_experts(given)) from None
    rows = [point[0] for point in points]
    if not points or rows != sorted(set(rows)) or rows[0] < 1 or min(most for _, most in points) < 0:
        raise ConfigError(_expected_active_experts(given))
    if max(max(point) for point in points) > MOST_INT:
        raise ConfigError(_expected_active_experts(given))
    return points


def _normalized_layers(given: object) -> Mapping[int, Mapping[str, Any]]:
    """Return checked settings by layer, each with the names that were given."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"layers: expected {{layer index: settings}}, got {given!r}")
    result: dict[int, Mapping[str, Any]] = {}
    for key, values in given.items():
        index = _layer_index("layers", key, "{layer index: settings}")
        if index in result:
            raise ConfigError(f"layers: layer {index} is named twice; give its settings once")
        if not isinstance(values, Mapping):
            raise ConfigError(f'layers: expected settings such as {{"active_experts": 24}}, got {values!r}')
        for name in values:
            if name not in _OF_A_LAYER:
                raise ConfigError(f"layers: unknown setting {name!r}{did_you_mean(str(name), _OF_A_LAYER)}")
        checked = LayerSettings(**values)
        result[index] = MappingProxyType({name: getattr(checked, name) for name in values})
    return MappingProxyType(dict(sorted(result.items())))


_OF_A_LAYER = ("select_top_k", "threshold", "active_experts")


def _layer_index(name: str, key: object, form: str) -> int:
    """Return a layer's index; keys in JSON are strings."""
    try:
        index = int(key) if isinstance(key, str) else as_integer(key)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected {form}, got the key {key!r}") from None
    if index < 0:
        raise ConfigError(f"{name}: layer indices start at 0, got {key!r}")
    return index


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
