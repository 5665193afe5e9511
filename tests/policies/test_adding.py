"""docs/adding-a-policy.md, followed: its file is a rule that settings, help and routers know."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

from sere.policies import spec
from sere.policies.spec import parse_spec
from tests.support.commands import run_text
from tests.support.policies import dense, route
from tests.support.source import ROOT

pytestmark = pytest.mark.checkout


def test_the_documents_rule_is_found_by_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file as printed, and one row more: it is parsed, listed, built and routes."""
    document = (ROOT / "docs" / "adding-a-policy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    (tmp_path / "toy_first.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = importlib.import_module("toy_first").First
    monkeypatch.setattr(spec, "POLICIES", {**spec.POLICIES, kind.name: kind})
    found = parse_spec("first:slots=1")
    assert found.label == "first:slots=1"
    listed, _ = run_text(capsys, "list", "policies")
    assert listed.rstrip().endswith("    slots=N")
    weights = torch.tensor([[0.2, 0.5, 0.3]])
    result, seen = route(found.build(), 6, torch.tensor([[4, 2, 1]]), weights)
    assert dense(result, 0) == pytest.approx([0, 0, 0, 0, 1, 0])
    assert (seen["distinct_before"], seen["distinct_after"], seen["slots_rerouted"]) == (3, 1, 2)
