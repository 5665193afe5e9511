"""What the tests of the plug-in's parts have in common."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def any_table() -> Any:
    pytest.importorskip("transformers")
    from sere.bench.target import random_table
    from tests.support.tiny import tiny_model

    return random_table(tiny_model("qwen3_moe"))


@pytest.fixture(scope="module")
def factors_table() -> Any:
    """A table with factors, as gains need them."""
    pytest.importorskip("transformers")
    from sere.bench.target import random_table
    from tests.support.tiny import tiny_model

    return random_table(tiny_model("qwen3_moe"), factors=True)
