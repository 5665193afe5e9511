"""What the engine's front end refuses in a request."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import ConfigError
from sere.integrations.vllm.start import checks
from tests.support.vllm.standins import ALL


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ({"seree": "off"}, True), ({"Sere": 2}, True), ({"sere ": {"select_top_k": 2}}, True),
        ({"seree": "fast"}, False), ({"serve": None}, False), ({"other": "off"}, False), (None, False),
    ],
)  # fmt: skip
def test_misspelled_key(extra: Any, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier under a name like "sere", which nothing would read, is refused; what others send is not."""
    monkeypatch.setattr(checks, "_refusal", lambda: ConfigError)
    if refused:
        with pytest.raises(ConfigError, match=f"setting under 'sere', got {next(iter(extra))!r}"):
            checks.check_request(extra, ALL)
    else:
        checks.check_request(extra, ALL)
