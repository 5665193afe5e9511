"""A release that nobody tested sere with is named, once, and does not stop anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import sere
from sere import versions
from sere.cli import main
from tests.support.tiny import tiny_model


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Releases of Transformers and PyTorch that do not exist yet."""
    releases = {"transformers": "9.9.0", "torch": "9.9.0+cpu"}
    monkeypatch.setattr(versions, "installed_version", releases.get)
    monkeypatch.setattr("sere.provenance.versions", lambda: releases)
    versions.warn_once.forget()
    yield
    versions.warn_once.forget()


@pytest.mark.usefixtures("tomorrow")
def test_applying_with_releases_that_nobody_tested(caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each package, however often re-routing is applied."""
    model = tiny_model("qwen3_moe")
    table = sere.calibrate(model, metric="weights")
    for _ in range(2):
        sere.apply(model, table, select_top_k=1).remove()
    said = [line for line in caplog.messages if "tested with" in line]
    assert [line.partition(" is newer")[0] for line in said] == [
        "sere: Transformers 9.9.0",
        "sere: PyTorch 9.9.0+cpu",
    ]


@pytest.mark.usefixtures("tomorrow")
def test_doctor_calls_them_untested(capsys: pytest.CaptureFixture[str]) -> None:
    """``sere doctor`` says so and what it means; nothing is broken."""
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = (one for one in findings if one["part"] == "versions" and one["name"] == "torch")
    assert found["state"] == "untested"
    tested = versions.describe_range("torch")
    assert f"({tested}); check that with select_top_k equal to the model's top_k" in found["detail"]
