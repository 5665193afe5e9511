"""Pretend that there are GPUs, as far as their memory is asked for: they compute nothing."""

from __future__ import annotations

import pytest
import torch


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Let PyTorch say of as many GPUs how many bytes each has free."""

    def memory(device: str) -> tuple[int, int]:
        size = free[torch.device(device).index or 0]
        return size, size

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
