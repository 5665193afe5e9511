"""Whether a device that a user names is here."""

from __future__ import annotations

import pytest

from sere.checkpoints.device import check_device
from sere.errors import ConfigError
from tests.support.gpus import pretend_gpus


def test_a_device_that_is_here() -> None:
    """Every machine has its CPU."""
    check_device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_any_other_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that holds no values; the text names those that are here."""
    pretend_gpus(monkeypatch, 1, 1)
    text = rf"--device {device}: not usable here, expected cpu, cuda:0, cuda:1 \("
    with pytest.raises(ConfigError, match=text):
        check_device(device, "--device")
