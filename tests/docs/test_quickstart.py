"""The quickstart: the README's lines are those of the example, and they work on a model that is not ours.

The whole example, with a real server, runs in ``tests/integrations/vllm/in_engine/test_over_http.py``.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import sere
from sere.defaults import TABLE
from sere.table import SimilarityTable
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import run_text

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "examples" / "quickstart.sh").read_text(encoding="utf-8")


def quickstart() -> list[str]:
    """The shell lines of the README's quickstart, without comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Quickstart\n")[2]
    (block, *_) = re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def first_look(name: str) -> list[str]:
    """The options that the example names for a first look at a model."""
    (options,) = re.findall(rf"^#     export {name}='(.*)'$", SCRIPT, re.MULTILINE)
    return shlex.split(options)


def test_the_readme_has_the_lines_of_the_example() -> None:
    """Each of them, in this order, with the model filled in."""
    lines = quickstart()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["sere", "calibrate"],
        ["sere", "tune"],
        ["vllm", "serve"],
    ]
    places = [SCRIPT.find("\n" + line.replace("MODEL", '"$model"')) for line in lines]
    assert -1 not in places
    assert places == sorted(places)


def test_a_model_of_another_family_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tokenizer of its own: from its name to a tier that was measured, which engines then take."""
    model = save_checkpoint(tmp_path, "olmoe")
    for line, name in zip(quickstart(), ("CALIBRATE", "TUNE"), strict=False):
        words = shlex.split(line.replace("MODEL", str(model)))
        run_text(capsys, *words[1:], *first_look(name))
    tier = SimilarityTable.load(model / TABLE).tiers["balanced"]
    assert "8" in tier.evidence["by_batch_size"]
    with sere.apply(AutoModelForCausalLM.from_pretrained(model)) as handle:
        assert handle.config is not None
        assert handle.config.tier == "balanced"
