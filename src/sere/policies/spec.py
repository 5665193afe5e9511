"""Settings as they are written on a command line: ``off``, ``sere:S=1,rho=0.3``, ``random:S=1``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError, did_you_mean

# Short names of the method's symbols; the long names are those of RerouteConfig.
_SHORT = {"S": "select_top_k", "rho": "threshold", "scale": "use_scale", "drop": "drop_share"}
_LONG = {long: short for short, long in _SHORT.items()}


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError


_KINDS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "off": {},
    "sere": {
        "select_top_k": int, "threshold": float, "min_active": int, "targets": str, "merge": str,
        "use_scale": _boolean, "backend": str,
    },
    "random": {"select_top_k": int, "min_active": int, "seed": int},
    "topk": {"select_top_k": int},
    "oea": {"select_top_k": int},
    "xshare": {"budget": int},
    "lynx": {"drop_share": float},
}  # fmt: skip
_NEEDED = {
    "sere": "select_top_k", "random": "select_top_k", "topk": "select_top_k", "oea": "select_top_k",
    "xshare": "budget", "lynx": "drop_share",
}  # fmt: skip
_EXAMPLE = {"budget": 16, "drop_share": 0.5}


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to route, as named on the command line.

    Attributes:
        kind: Which policy: ``off`` (unmodified), ``sere``, the control ``random``, or a rival.
        options: Its settings under their long names, e.g. ``{"select_top_k": 1}``.
    """

    kind: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The setting as it would be typed, e.g. ``sere:S=1,rho=0.3``; equal settings have equal labels."""
        parts = [
            f"{_LONG.get(name, name)}={_text(self.options[name])}"
            for name in _KINDS[self.kind]
            if name in self.options
        ]
        return f"{self.kind}:{','.join(parts)}" if parts else self.kind

    @property
    def needs_table(self) -> bool:
        """Whether it needs similarities."""
        return self.kind == "sere"

    def config(self) -> RerouteConfig:
        """Return the settings of a ``sere`` setting.

        Raises:
            ConfigError: A value is out of range.
        """
        return RerouteConfig.from_mapping(self.options)


def parse_setting(text: str) -> Setting:
    """Read one setting: a policy's name, then ``:`` and ``name=value`` pairs with commas between.

    Args:
        text: E.g. ``off``, ``sere:S=2,rho=0.3,targets=active,min_active=8``, ``random:S=1``, ``topk:S=2``.

    Raises:
        ConfigError: A name is unknown (the text gives the nearest), a value does not fit, or the
            setting that the policy needs is missing, or one is given twice.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in _KINDS:
        raise ConfigError(f"setting {text!r}: unknown policy {kind!r}{did_you_mean(kind, _KINDS)}")
    options: dict[str, Any] = {}
    for part in rest.split(","):
        if not part.strip():
            continue
        name, value = _option(text, kind, part)
        if name in options:
            raise ConfigError(f"setting {text!r}: {_LONG.get(name, name)} is given twice; leave one out")
        options[name] = value
    needed = _NEEDED.get(kind)
    if needed is not None and needed not in options:
        short = _LONG.get(needed, needed)
        raise ConfigError(
            f"setting {text!r}: {kind} needs {short}, e.g. {kind}:{short}={_EXAMPLE.get(needed, 2)}"
        )
    setting = Setting(kind, options)
    if kind == "sere":
        setting.config()
    return setting


def parse_settings(texts: Iterable[str]) -> list[Setting]:
    """Read several settings, ``off`` first (what all are compared with), each once.

    Raises:
        ConfigError: As ``parse_setting``.
    """
    unique = {setting.label: setting for setting in [Setting("off", {}), *map(parse_setting, texts)]}
    return list(unique.values())


def check_off_first(settings: Sequence[Setting]) -> None:
    """Make sure that there is something to compare with.

    Raises:
        InputError: The first setting is not ``off``, or there is none.
    """
    if not settings or settings[0].kind != "off":
        came = settings[0].label if settings else "none"
        raise InputError(
            f"settings: the first setting must be 'off', which all others are compared with; got {came}"
        )


def _option(text: str, kind: str, part: str) -> tuple[str, Any]:
    """Return the long name and the value of one ``name=value``."""
    name, equals, value = (piece.strip() for piece in part.partition("="))
    long = _SHORT.get(name, name)
    readers = _KINDS[kind]
    if long not in readers:
        valid = [_LONG.get(known, known) for known in readers]
        hint = did_you_mean(name, valid) if valid else f"; {kind} takes none"
        raise ConfigError(f"setting {text!r}: unknown option {name!r}{hint}")
    try:
        if not equals:
            raise ValueError
        return long, readers[long](value)
    except ValueError:
        words = {int: "an integer", float: "a number", str: "a word", _boolean: "true or false"}
        wanted = next(word for reader, word in words.items() if reader is readers[long])
        raise ConfigError(f"setting {text!r}: {name} expects {wanted}, got {value!r}") from None


def _text(value: Any) -> str:
    if isinstance(value, float):
        # The short form only where it reads back as the same number: labels tell settings apart.
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
