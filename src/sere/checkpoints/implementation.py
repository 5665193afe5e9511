"""How Transformers computes the experts, where the user does not say."""

from __future__ import annotations

import torch


def choose_experts_implementation(wanted: str | None, device: str) -> str | None:
    """Return what was wanted, or else ``eager`` on a CPU, the fastest there.

    Args:
        wanted: Transformers' name of an implementation, or None.
        device: Where the model runs.

    Returns:
        A name, or None for Transformers' own choice.
    """
    return wanted or ("eager" if torch.device(device).type == "cpu" else None)
