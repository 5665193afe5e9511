"""What must not end an engine or silently switch re-routing off: parts and stand-ins, no engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.integrations.vllm import live
from sere.integrations.vllm.requests import PROTECTED
from sere.integrations.vllm.rows import RowSignal
from tests.integrations.vllm.test_parts import RequestBook, new, step

LARGE = (1 << 31) - 1


def session(**options: Any) -> Any:
    """A session of no layers: settings, a table of two layers of 16 experts, counts."""
    return SimpleNamespace(
        config=RerouteConfig(select_top_k=2, **options),
        enabled=True,
        layers={},
        table=SimpleNamespace(E=16, layers={0: None, 1: None}),
    )


def test_large_s_is_exact() -> None:
    """The largest S that the settings take, at the start or live, protects the rows; none overflows."""
    known = session()
    assert live.change(known, {"select_top_k": LARGE})["select_top_k"] == LARGE
    book = RequestBook()
    book.update(step(news=(new("a", 3),)))
    found = book.budgets(step(cached={"a": 3}), ["a"], np.array([1]), known.config.select_top_k)
    assert found.tolist() == [PROTECTED]
    assert not RowSignal(2, torch.device("cpu"), may_skip=True).announce(found)


def test_larger_s_is_refused() -> None:
    """An S or a floor that no int32 holds is refused at the start and live, where nothing changes."""
    text = f"expected an integer of at most {LARGE}, got {LARGE + 1}"
    for name in ("select_top_k", "min_active"):
        with pytest.raises(ConfigError, match=f"{name}: {text}"):
            RerouteConfig.from_mapping({"select_top_k": 1} | {name: LARGE + 1})
    known = session()
    assert text in live.change(known, {"select_top_k": LARGE + 1})["error"]
    assert known.config.select_top_k == 2
