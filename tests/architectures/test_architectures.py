"""Every Mixture-of-Experts architecture of the installed Transformers, built tiny: works, or says why not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sere.errors import UnsupportedModel
from tests.support.architectures.build import architectures, folders, tiny
from tests.support.architectures.checks import REFUSED, WORKS, in_memory, layer_by_layer, outcomes
from tests.support.architectures.configs import OWN
from tests.support.architectures.expected import refusals


@pytest.mark.parametrize("folder", folders())
@pytest.mark.filterwarnings("ignore")  # Transformers' own, of configs as small as these
def test_it_works_or_is_refused_by_name(folder: str, tmp_path: Path) -> None:
    """Found, calibrated both ways, saved, re-routed; what cannot be is refused with the reason."""
    names = architectures(folder)
    assert names, "no class of this folder generates text with experts: `folders` should not name it"
    for name in names:
        place = tmp_path / name
        place.mkdir()
        expected = refusals(name)
        found = {
            check: text.removeprefix(REFUSED)
            for check, text in outcomes(folder, name, place).items()
            if text.startswith(REFUSED)
        }
        assert found.keys() == expected.keys(), found
        for check, reason in expected.items():
            assert re.search(reason, found[check]), found[check]


@pytest.mark.parametrize(
    ("folder", "name", "overrides", "reason"),
    [
        ("gemma4", "gemma4_text", {"num_kv_shared_layers": 1}, "a collection that its decoder layers share"),
        (
            "glm5_next", "glm5_next",
            {"text_config": OWN["glm5_next"]["text_config"] | {"indexer_types": ["full", "full", "shared"]}},
            "further results",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_layers_that_use_what_others_made_are_refused_layer_by_layer(
    folder: str, name: str, overrides: Any, reason: str, tmp_path: Path
) -> None:
    """Keys and values, or positions, of an earlier decoder layer: only the whole model has them."""
    model = tiny(folder, name, **overrides)
    assert in_memory(model, tmp_path) == WORKS
    with pytest.raises(UnsupportedModel, match=reason):
        layer_by_layer(model, tmp_path)
