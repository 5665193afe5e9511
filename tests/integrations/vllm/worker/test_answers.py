"""What a worker answers where a call of it fails."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sere.errors import ConfigError, InputError, TableError, UnsupportedEngine
from sere.integrations.vllm.worker.answers import answering


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ConfigError("threshold: too large"), {"error": "threshold: too large"}),
        (InputError("other tensors"), {"failure": "rank 3: InputError: other tensors"}),
        (TableError("no layer 7"), {"failure": "rank 3: TableError: no layer 7"}),
        (UnsupportedEngine("no"), {"failure": "rank 3: UnsupportedEngine: no"}),
        (KeyError("x"), {"failure": "rank 3: KeyError: 'x'"}),
    ],
    ids=["a setting", "tensors", "table", "engine", "anything else"],
)
def test_whose_fault_an_error_is(error: Exception, answer: dict[str, str]) -> None:
    """Only a refused setting is the caller's fault (400 over HTTP); all else is the engine's (500)."""

    def fail(*_: Any) -> Any:
        raise error

    state: Any = SimpleNamespace(lock=threading.RLock(), rank=3)
    assert answering(state, "changing settings", fail)({}) == answer
