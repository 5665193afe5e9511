"""Whether the device that a user names is here."""

from __future__ import annotations

import torch

from sere.errors import ConfigError, name_some


def check_device(device: str, setting: str = "device") -> None:
    """Make sure that a device is here and computes.

    Args:
        device: Such as ``"cpu"`` or ``"cuda:1"``.
        setting: What names it, for the error text.

    Raises:
        ConfigError: It does not; the text names the devices that are here.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting} {device}: not usable here, expected {name_some(here)} ({why})"
        ) from error
