"""The registry of routing rules, and settings as they are written: ``sere:active_experts=24``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sere.errors import ConfigError, InputError, did_you_mean
from sere.policies.base import Policy
from sere.policies.budget import Budget
from sere.policies.drop import Drop
from sere.policies.lynx import Lynx
from sere.policies.oea import Oea
from sere.policies.off import Off
from sere.policies.options import Option, options_of
from sere.policies.pool import Pool
from sere.policies.prune import Prune
from sere.policies.random import RandomReroute
from sere.policies.sere import Sere
from sere.policies.topk import TopK
from sere.policies.topp import TopP
from sere.policies.xshare import XShare
from sere.table import SimilarityTable

POLICIES: Mapping[str, type[Policy]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Off,
            Sere,
            RandomReroute,
            Drop,
            TopK,
            TopP,
            Oea,
            XShare,
            Budget,
            Lynx,
            Pool,
            Prune,
        )
    }
)
"""Every routing rule by name. The command line, ``eval``, ``bench``, both engines and the tests look here."""

# Symbols of the method that older records use for option names.
_SHORT = {"S": "select_top_k", "rho": "threshold", "scale": "use_scale", "drop": "drop_share"}


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One routing rule with its options, as written on a command line.

    Attributes:
        name: The rule, a key of ``POLICIES``.
        options: Its options by name, e.g. ``{"active_experts": 24}``.
    """

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The setting as it would be typed, e.g. ``sere:paper,select_top_k=2``."""
        known = options_of(self.policy_class).values()
        given = [one for one in known if one.name in self.options and one.name != "preset"]
        parts = [f"{one.name}={one.write(self.options[one.name])}" for one in given]
        if (preset := self.options.get("preset")) is not None:
            parts.insert(0, preset)
        return f"{self.name}:{','.join(parts)}" if parts else self.name

    @property
    def policy_class(self) -> type[Policy]:
        """The class of the rule."""
        return POLICIES[self.name]

    @property
    def needs_table(self) -> bool:
        """Whether the rule needs a similarity table."""
        return self.policy_class.needs_table

    def build(self, table: SimilarityTable | None = None, *, seed: int = 0) -> Policy:
        """Build the rule.

        Args:
            table: The model's similarity table, or None.
            seed: The seed of a rule that draws, unless the options name one.

        Raises:
            ConfigError: The rule needs a table and there is none, or an option does not fit it.
        """
        if table is None and self.needs_table:
            raise ConfigError(f"setting {self.label}: needs a similarity table; give one with --table")
        options = dict(self.options)
        if "seed" in options_of(self.policy_class):
            options.setdefault("seed", seed)
        return self.policy_class.from_options(options, table)


def parse_spec(text: str) -> PolicySpec:
    """Read one setting: a rule's name, then ``:`` and ``name=value`` pairs with commas between.

    Args:
        text: E.g. ``off``, ``sere``, ``sere:active_experts=1-8/8-24,cap=true``,
            ``sere:paper,select_top_k=2``, ``random:select_top_k=1``.

    Raises:
        ConfigError: A name is unknown (the text gives the nearest), a value does not fit, or an option that
            the rule needs is missing, or one is given twice.
    """
    name, _, rest = text.strip().partition(":")
    if name not in POLICIES:
        raise ConfigError(f"setting {text!r}: unknown policy {name!r}{did_you_mean(name, POLICIES)}")
    kind = POLICIES[name]
    known, options = options_of(kind), {}
    for part in filter(str.strip, rest.split(",")):
        option, value = _read(text, kind, known, part)
        if option in options:
            raise ConfigError(f"setting {text!r}: {option} is given twice; leave one out")
        options[option] = value
    missing = [option.name for option in known.values() if option.required and option.name not in options]
    if missing:
        raise ConfigError(f"setting {text!r}: {name} needs {missing[0]}, e.g. {name}:{kind.example}")
    # Refuse values out of range here, before long work.
    kind.check_options(options)
    return PolicySpec(name, options)


def parse_specs(texts: Iterable[str]) -> list[PolicySpec]:
    """Read several settings, ``off`` first (what all are compared with), each once.

    Raises:
        ConfigError: As ``parse_spec``.
    """
    unique = {spec.label: spec for spec in [PolicySpec("off", {}), *map(parse_spec, texts)]}
    return list(unique.values())


def needed_form(name: str) -> str:
    """Return what to write for a rule with the options that it needs, e.g. ``topk:select_top_k=N``."""
    needed = [f"{one.name}={one.form}" for one in options_of(POLICIES[name]).values() if one.required]
    return f"{name}:{','.join(needed)}" if needed else name


def summarize(name: str) -> str:
    """Return the first sentence of a rule's docstring, without markup."""
    return (POLICIES[name].__doc__ or "").partition("\n")[0].replace("``", "")


def check_off_first(specs: Sequence[PolicySpec]) -> None:
    """Make sure that there is something to compare with.

    Raises:
        InputError: The first setting is not ``off``, or there are no settings.
    """
    if not specs or specs[0].name != "off":
        first = specs[0].label if specs else "none"
        raise InputError(
            f"settings: the first setting must be 'off', which all others are compared with; got {first}"
        )


def _read(text: str, kind: type[Policy], known: Mapping[str, Option], part: str) -> tuple[str, Any]:
    """Return the name and the value of one ``name=value``, or of a preset."""
    name, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals and name in kind.presets:
        return "preset", name
    option = known.get(_SHORT.get(name, name))
    if option is None:
        hint = did_you_mean(name, known) if known else f"; {kind.name} takes none"
        raise ConfigError(f"setting {text!r}: unknown option {name!r}{hint}")
    try:
        if not equals:
            raise ValueError
        return option.name, option.read(value)
    except ConfigError as error:
        raise ConfigError(f"setting {text!r}: {error}") from None
    except ValueError:
        raise ConfigError(f"setting {text!r}: {name} expects {option.expects}, got {value!r}") from None
