"""The settings of re-routing: one frozen, validated object that every integration takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from sere.config.active_experts import (
    ActiveExperts,
    json_of_active_experts,
    may_be_zero,
    text_of_active_experts,
)
from sere.config.checks import (
    check_boolean,
    check_choice,
    check_integer,
    check_sentinel,
    check_share,
    check_threshold,
)
from sere.config.layers import OF_A_LAYER, LayerSettings, read_by_layer, read_keep
from sere.errors import ConfigError, did_you_mean

Targets = Literal["primary", "active"]
Merge = Literal["none", "same", "distinct", "sentinel"]
Phases = Literal["decode", "all"]
Backend = Literal["auto", "reference", "torch", "cpu", "cuda", "triton"]
Flatten = Literal["auto", "on", "off"]

PAPER = "paper"


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
            experts alone. A mapping ``{layer index: M}`` goes to ``layers``.
        cap: Whether M is a limit even where the rows' heaviest experts are more than M; otherwise these all
            are read.
        min_gain: τ, from 0 to 1: a re-routed slot stays only if it is expected to give this share of the
            energy of its row's experts; otherwise its weight becomes 0. 0 gives up none. Needs factors.
        layers: Other values of ``select_top_k``, ``threshold``, ``active_experts`` and ``min_gain`` for some
            layers: ``{layer index: {"active_experts": 24}}``.
        tier: The tier of the table that ``"auto"`` means: ``"safe"``, ``"balanced"``, ``"fast"``; None for
            ``"balanced"`` if the table has it.
        keep: Experts that are never replaced: ``{layer index: expert ids}``.
        targets: Replace by the most similar ``"primary"`` expert (the paper) or ``"active"`` one.
        use_scale: Multiply the weight of a re-routed slot by the table's ``scale``; None: where it has one.
        merge: What to do with duplicate expert ids within one token's top-k.
        sentinel: The id that freed slots get with ``merge="sentinel"``.
        phases: Re-route ``"decode"`` steps only, or prefill as well (``"all"``).
        backend: Which implementation of the operation; ``"auto"`` chooses by device.
        flatten: On a CPU, compute only the pairs of a row and an expert that carry weight: where it is faster
            (``"auto"``), wherever there are fewer pairs than slots (``"on"``), or never (``"off"``).
        table: Path of the similarity table, or its name on the hub (``owner/name``), for integrations that
            take all settings in one mapping.
        preset: ``"paper"`` for the published method: no filling up, no factors, no slot given up; `paper`
            makes it.

    Raises:
        ConfigError: A value has the wrong type or is out of range, or does not go with the preset.
    """

    select_top_k: int = 1
    threshold: float = 0.0
    active_experts: ActiveExperts = "auto"
    cap: bool = False
    min_gain: float = 0.0
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    tier: str | None = None
    keep: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    targets: Targets = "primary"
    use_scale: bool | None = None
    merge: Merge = "none"
    sentinel: int | None = None
    phases: Phases = "decode"
    backend: Backend = "auto"
    flatten: Flatten = "auto"
    table: str | None = None
    preset: Literal["paper"] | None = None

    def __post_init__(self) -> None:
        layers, active_experts = read_by_layer(self.layers, self.active_experts)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "active_experts", active_experts)
        if self.preset is not None:
            self._take_preset()
        object.__setattr__(self, "select_top_k", check_integer("select_top_k", self.select_top_k, least=1))
        object.__setattr__(self, "threshold", check_threshold(self.threshold))
        object.__setattr__(self, "min_gain", check_share("min_gain", self.min_gain))
        check_choice("targets", self.targets, get_args(Targets))
        check_choice("merge", self.merge, get_args(Merge))
        check_choice("phases", self.phases, get_args(Phases))
        check_choice("backend", self.backend, get_args(Backend))
        check_choice("flatten", self.flatten, get_args(Flatten))
        if self.use_scale is not None:
            check_boolean("use_scale", self.use_scale)
        if self.use_scale is False and any(self.for_layer(index).min_gain for index in (None, *self.layers)):
            raise ConfigError(
                "min_gain: needs the table's factors, which use_scale=false leaves out; drop one of the two"
            )
        self._check_limit()
        check_sentinel(self.merge, self.sentinel)
        if self.table is not None and not isinstance(self.table, str | os.PathLike):
            raise ConfigError(f"table: expected a path, got {self.table!r}")
        object.__setattr__(self, "keep", read_keep(self.keep))

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

    def for_layer(self, index: int | None) -> LayerSettings:
        """Return the settings of one layer.

        Args:
            index: Decoder-layer index, or None for the settings of all layers.
        """
        own = {name: getattr(self, name) for name in OF_A_LAYER}
        return LayerSettings(**own | ({} if index is None else dict(self.layers.get(index, {}))))

    def _take_preset(self) -> None:
        """Set what the preset says; refuse what contradicts it."""
        check_choice("preset", self.preset, (PAPER,))
        fixed = {"active_experts": 0, "cap": False, "min_gain": 0.0, "layers": {}, "tier": None,
                 "use_scale": False, "targets": "primary"}  # fmt: skip
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
        check_boolean("cap", self.cap)
        if self.tier is not None and not isinstance(self.tier, str):
            raise ConfigError(f"tier: expected the name of one of the table's tiers, got {self.tier!r}")
        limits = [self.active_experts, *(own.get("active_experts", "auto") for own in self.layers.values())]
        zero = next((most for most in limits if may_be_zero(most)), None)
        if self.cap and zero is not None:
            raise ConfigError(
                "cap: needs a number of experts to keep to, got "
                f"active_experts={text_of_active_experts(zero)}; give another one, or leave out cap"
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
        values["active_experts"] = json_of_active_experts(self.active_experts)
        values["layers"] = {
            str(index): {name: json_of_active_experts(value) for name, value in own.items()}
            for index, own in self.layers.items()
        }
        return values
