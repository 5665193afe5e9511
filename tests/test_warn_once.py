"""A warning is logged once for each key, as long as the object lives."""

from __future__ import annotations

import logging

import pytest

from sere.warn_once import WarnOnce


def test_a_key_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The second time nothing is logged, whatever the message; another key is news."""
    warn = WarnOnce(logging.getLogger("sere"))
    assert [warn("a", "first %d", 1), warn("a", "first %d", 2), warn("b", "other")] == [True, False, True]
    assert caplog.messages == ["first 1", "other"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_forgetting_and_other_objects_begin_again(caplog: pytest.LogCaptureFixture) -> None:
    """Two owners do not silence each other."""
    warn, other = WarnOnce(logging.getLogger("sere")), WarnOnce(logging.getLogger("sere"))
    assert warn("a", "text")
    assert other("a", "text")
    warn.forget()
    assert warn("a", "text")
    assert caplog.messages == ["text"] * 3
