"""What the engine's front end refuses in a request."""

from __future__ import annotations

from typing import Any

import pytest

from sere.errors import BackendUnavailable, ConfigError
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


def test_layers_that_a_named_backend_does_not_take() -> None:
    """A backend that was named and takes fewer slots per row than the model has stops the start."""
    with pytest.raises(BackendUnavailable, match="at most 32 slots per row, this layer has 33"):
        checks._check_backend("triton", "cuda", 128, 33)
    checks._check_backend("auto", "cuda", 128, 33)
