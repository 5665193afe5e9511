"""The device's context on each thread that launches, without a device."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from sere.reroute.cuda import device
from sere.reroute.cuda.launch import Launch


def test_a_new_thread_makes_the_device_current_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch may have given a new thread no context: the first launch there sees to it."""
    told: list[object] = []
    core = SimpleNamespace(
        Device=lambda index: SimpleNamespace(set_current=lambda: told.append(index)),
        LaunchConfig=lambda grid, block: (grid, block),
        Stream=SimpleNamespace(from_handle=lambda handle: handle),
        launch=lambda *_: told.append("launch"),
    )
    monkeypatch.setattr(device, "_core", lambda: core)
    monkeypatch.setattr(device, "_shape_of", device._shape_of.__wrapped__)
    monkeypatch.setattr(device, "stream_of", device.stream_of.__wrapped__)
    # Loaded by another thread.
    monkeypatch.setattr(device, "kernels", lambda _: defaultdict(lambda: "kernel"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 70 + index, raising=False)

    def two_launches() -> None:
        for _ in range(2):
            device.launch(Launch("reroute_int32_float32", 1, 64, ()), torch.device("cuda", 3))

    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(two_launches).result()
    assert told == [3, "launch", "launch"] * 2
