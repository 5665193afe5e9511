"""Every Mixture-of-Experts architecture of the installed Transformers, built tiny: works, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architectures.build import architectures, folders
from tests.architectures.checks import REFUSED, outcomes
from tests.architectures.expected import REFUSALS


@pytest.mark.parametrize("folder", folders())
@pytest.mark.filterwarnings("ignore")  # Transformers' own, of configs as small as these
def test_it_works_or_is_refused_by_name(folder: str, tmp_path: Path) -> None:
    """Found, calibrated both ways, saved, re-routed; what cannot be is refused with the reason."""
    names = architectures(folder)
    assert names, "no class of this folder generates text with experts: `folders` should not name it"
    for name in names:
        place = tmp_path / name
        place.mkdir()
        expected = REFUSALS.get(name, {})
        found = {
            check: text.removeprefix(REFUSED)
            for check, text in outcomes(folder, name, place).items()
            if text.startswith(REFUSED)
        }
        assert found.keys() == expected.keys(), found
        for check, reason in expected.items():
            assert re.search(reason, found[check]), found[check]
