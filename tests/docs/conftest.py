"""What the tests of the documents' build share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BUILD = Path(__file__).resolve().parents[2] / "docs" / "build"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of docs/build."""
    monkeypatch.syspath_prepend(str(BUILD))
    return importlib.import_module
