"""The numbers that docs/method.md names are those that the backends use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from sere.config import Backend, Merge, RerouteConfig
from sere.reroute import BACKENDS, constants
from sere.reroute.raw_layer import KernelConfig

METHOD = Path(__file__).parents[2] / "docs" / "method.md"


def documented() -> dict[str, int]:
    """Every constant of the method's table, by name."""
    found: dict[str, int] = {}
    for names, values in re.findall(
        r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \| ([^|]+) \|", METHOD.read_text(), re.M
    ):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            base, _, power = value.partition("^")
            found[name.strip("`")] = int(base) ** int(power or 1)
    return found


def test_the_method_names_every_constant() -> None:
    """Name and value agree in both directions."""
    ours = {name: value for name, value in vars(constants).items() if isinstance(value, int)}
    assert documented() == ours


def test_settings_offer_every_backend_and_merge_mode() -> None:
    """The names that type checkers and settings know are those of the registries."""
    assert get_args(Backend) == ("auto", *BACKENDS)
    assert get_args(Merge) == (*constants.MERGE_MODES,)


@pytest.mark.parametrize("merge", get_args(Merge))
def test_each_merge_mode_is_the_constant_of_its_name(merge: str) -> None:
    """What a setting says becomes the number that kernels compare with."""
    sentinel = -1 if merge == "sentinel" else None
    config = RerouteConfig.from_mapping({"select_top_k": 1, "merge": merge, "sentinel": sentinel})
    assert KernelConfig.of(config).merge == getattr(constants, f"MERGE_{merge.upper()}")
