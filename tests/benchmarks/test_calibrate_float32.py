"""The benchmark of float32 products: a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import calibrate_float32
from sere.calibrate import float32_products as products

pytestmark = pytest.mark.checkout


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways compute the same outputs, but for rounding; the record has both times and their ratio."""
    monkeypatch.setattr(products, "emulates_bfloat16", lambda: True)
    monkeypatch.setattr(calibrate_float32, "emulates_bfloat16", lambda: True)
    out = tmp_path / "out.jsonl"
    given = ["--preset", "tiny", "--tokens", "16", "--rounds", "3", "--threads", "1", "--out", str(out)]
    assert calibrate_float32.main(given) == 0
    (record,) = map(json.loads, out.read_text().splitlines())
    assert set(record["seconds"]) == {"bfloat16", "float32"}
    assert record["relative_difference"] < 0.01
    shown = record["ratio"]["value"]
    assert f"{shown:.2f} times as fast" in capsys.readouterr().out


def test_a_cpu_with_the_instructions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is nothing to compare, and no record."""
    monkeypatch.setattr(calibrate_float32, "emulates_bfloat16", lambda: False)
    with pytest.raises(SystemExit, match="nothing to compare"):
        calibrate_float32.main(["--out", str(tmp_path / "out.jsonl")])
    assert not list(tmp_path.iterdir())
