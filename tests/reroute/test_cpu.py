"""The ``cpu`` backend alone: its compiled code and where that is kept."""

from __future__ import annotations

import logging
from pathlib import Path

import numba.core.caching
import pytest

from sere.reroute.backends.cpu import call
from tests.support.batches import Case, assert_same_bits, batch, similarity_matrix


def test_compiled_without_a_cache_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a read-only installation the cpu backend runs all the same, with one log line."""
    monkeypatch.setattr(numba.core.caching.CompileResultCacheImpl, "_locator_classes", [])
    monkeypatch.setattr(call, "_compiled", call._compiled.__wrapped__)
    call.warn_once.forget()
    ids, weights = batch(8, 4, 16, seed=8)
    case = Case(ids, weights, similarity_matrix(16, 8), {"select_top_k": 1})
    with caplog.at_level(logging.WARNING, logger="sere"):
        for _ in range(2):
            assert_same_bits(case, "cpu")
    assert len(caplog.records) == 1
    assert "its code cannot be cached (cannot cache function" in caplog.text
    assert "set NUMBA_CACHE_DIR to a folder that you alone can write to" in caplog.text


def test_no_code_from_a_folder_of_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Where others could put code into the named cache, none is read from it; one's own folder is used."""
    monkeypatch.setattr(call.numba.config, "CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    call._check_named_cache()
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match=r"others may write to it \(mode 777\)"):
        call._check_named_cache()
