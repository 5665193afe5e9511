"""What an engine that calibrates is refused for, before any process is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.calibration.checks import check_calibration
from sere.integrations.vllm.calibration.request import CALIBRATION_KEY, calibrates
from sere.integrations.vllm.start import versions


@pytest.fixture(autouse=True)
def _some_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "engine_version", lambda: "0.32.0")


def config(speculative: Any = None, **parallel: Any) -> Any:
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(**parallel),
        speculative_config=speculative,
    )


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (config(data_parallel_size=2), "data_parallel_size"),
        (config(prefill_context_parallel_size=2), "prefill_context_parallel_size"),
        (config(enable_eplb=True), "enable_eplb"),
        (config(enable_dbo=True), "enable_dbo"),
        (config(speculative=object()), "speculative_config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_with_other_rows(wrong: Any, name: str) -> None:
    """The text names the option."""
    with pytest.raises(UnsupportedEngine, match=f"{name}: calibration needs each layer's rows"):
        check_calibration(wrong)


def test_tensor_and_pipeline_parallelism_pass() -> None:
    """Their ranks see every row."""
    check_calibration(config(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=1))


def test_a_version_that_nobody_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for re-routing."""
    monkeypatch.setattr(versions, "engine_version", lambda: "0.99.0")
    with pytest.raises(UnsupportedEngine, match=r"vLLM 0\.99\.0: expected"):
        check_calibration(config())


@pytest.mark.parametrize(
    ("additional", "expected"),
    [
        ({CALIBRATION_KEY: True}, True),
        ({CALIBRATION_KEY: False}, False),
        ({"sere": {}}, False),
        (None, False),
    ],
)
def test_only_an_engine_that_was_asked_calibrates(additional: Any, expected: bool) -> None:
    """Others are left alone."""
    assert calibrates(SimpleNamespace(additional_config=additional)) is expected
