"""What the documents show is what the code does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import sere
from sere.bundled import model_path
from sere.config import RerouteConfig
from sere.defaults import table_here
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.reroute.stats import COUNTERS

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


README = read("README.md")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_readme_python_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The README's Python as printed, on the bundled model: experts fall in each layer, and it prints it."""
    texts = [f"Document {i} has some words for calibration, and some more of them." for i in range(40)]
    table = sere.calibrate(model_path(), texts=texts)
    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    table.save(table_here(str(model_path())))
    exec(compile(code.replace('"MODEL"', repr(str(model_path()))), "README.md", "exec"), {})
    shown = re.findall(r"layer \d+: (\d+\.\d) -> (\d+\.\d) experts", capsys.readouterr().out)
    assert len(shown) == 6, "layers of the bundled model"
    # As many as the table that was made estimates for 32 rows.
    tier = table.tiers["balanced"]
    most = dict(tier.active_experts)[32]  # type: ignore[arg-type]
    assert all(float(after) <= most < float(before) for before, after in shown)
    assert not [record for record in caplog.records if "nothing was re-routed" in record.getMessage()]


@pytest.mark.checkout
@pytest.mark.parametrize("name", ["docs/adding-an-architecture.md", "docs/evaluating.md"])
def test_python_of_other_pages_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's Python that needs no model of the reader's runs as printed."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", read(name), re.DOTALL | re.MULTILINE)
    exec(compile(code, name, "exec"), {})


@pytest.mark.checkout
def test_numbers_of_the_first_screen_are_those_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch costs and what changes is said in words, with the numbers of the table below it."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "build"))
    records = importlib.import_module("records")
    cases = records.recommended_cases(records.read_json("demo.json"))
    off, on = cases[16]
    words = " ".join(README.split("![")[0].split())
    alone, batch = (f"{case['distinct_after']:.0f}" for case in (cases[1][0], off))
    assert f"that is {alone} of 96 experts for one token, but {batch} for a batch of 16" in words
    assert f"a batch of 16 reads {on['distinct_after']:.0f} experts" in words
    assert f"decodes {on['speedup']['p50']:.2f} times as fast" in words
    right = [f"{100 * case['share']['value']:.1f} %" for case in (on, off)]
    assert f"answers {right[0]} of our questions right, against {right[1]} without sere" in words


@pytest.mark.checkout
def test_every_metric_of_a_served_engine_is_explained() -> None:
    """docs/operations.md has a row for each metric that Prometheus gets, and for no other."""
    rows = re.findall(r"^\| `(sere_\w+)", read("docs/operations.md"), re.MULTILINE)
    layers = [f"sere_layer_{counter}_total" for counter in COUNTERS]
    tiers = ["sere_info", "sere_tier", "sere_tier_steps_total", "sere_layer_active_experts"]
    assert sorted(rows) == sorted(["sere_enabled", "sere_steps_total", *tiers, *layers])


@pytest.mark.checkout
def test_settings_in_the_documents_are_those_of_the_code() -> None:
    """docs/vllm.md has each key of the plug-in with its default, and README only settings that exist."""
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", read("docs/vllm.md"), re.MULTILINE)
    own = {field.name: field.default for field in fields(PluginConfig)}
    del own["reroute"], own["merge_given"]
    said = {None: "none", True: "true", False: "false", 60.0: "60"}
    expected = {name: said.get(value, f"`{value}`") for name, value in own.items()}
    # No list of names, and no range, is none that is left out.
    assert dict(rows) == expected | {"request_tiers": "all", "request_select_top_k": "any"}
    settings = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert settings
    assert set(settings) <= {field.name for field in fields(RerouteConfig)}


@pytest.mark.checkout
def test_tables_come_from_the_records() -> None:
    """No number was typed: writing the documents again changes nothing."""
    run = subprocess.run(
        [sys.executable, "docs/build/documents.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
