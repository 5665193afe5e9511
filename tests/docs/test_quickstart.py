"""The quickstart: the README's lines are those of the example, and they work on a model that is not ours.

The whole example, with a real server, runs in ``tests/integrations/vllm/in_engine/test_over_http.py``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import sere
from sere.defaults import TABLE
from sere.table import SimilarityTable
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import refused, run_text
from tests.support.patience import HANGS_S

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "examples" / "quickstart.sh").read_text(encoding="utf-8")

MEASURED = '"accepted_kl"'


def quickstart() -> list[str]:
    """The shell lines of the README's quickstart, without comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Quickstart\n")[2]
    (block, *_) = re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines() if not line.startswith("#")]


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
    named = [re.escape(line.replace("MODEL", '"$model"')) for line in lines]
    found = [re.search(rf"^ *(\S+\) )?{line}", SCRIPT, re.MULTILINE) for line in named]
    places = [one.start() for one in found if one is not None]
    assert len(places) == len(lines)
    assert places == sorted(places)


def test_a_model_of_another_family_needs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tokenizer of its own: from its name to a tier that was measured, which engines then take."""
    model = save_checkpoint(tmp_path, "olmoe")
    show = ("table", "show", str(model), "--json")
    assert "has one, but there is no similarity.sere" in refused(capsys, *show)
    shown = []
    for line, name in zip(quickstart(), ("CALIBRATE", "TUNE"), strict=False):
        words = shlex.split(line.replace("MODEL", str(model)))
        run_text(capsys, *words[1:], *first_look(name))
        shown.append(run_text(capsys, *show)[0])
    # By this the example tells a table that was tuned.
    assert [MEASURED in text for text in shown] == [False, True]
    tier = SimilarityTable.load(model / TABLE).tiers["balanced"]
    assert "8" in tier.evidence["by_batch_size"]
    with sere.apply(AutoModelForCausalLM.from_pretrained(model)) as handle:
        assert handle.config is not None
        assert handle.config.tier == "balanced"


def steps(folder: Path, **options: str) -> list[str]:
    """Run the example with commands that only say their names; return these, until the server has ended.

    The table is a file in the folder: calibrating makes it, and tuning adds what tells its tiers.
    """
    bodies = {
        "sere": 'case "$1" in table) cat table ;; calibrate) echo {} > table ;;'
        f" tune) echo '{MEASURED}' > table ;; esac",
        "vllm": "exit 0",
        "curl": "exit 1",
        "sleep": "exit 0",
    }
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, body in bodies.items():
        said = 'echo "${0##*/} $1" >> steps\n' if name in ("sere", "vllm") else ""
        (commands / name).write_text(f"#!/bin/sh\n{said}{body}\n", encoding="utf-8")
        (commands / name).chmod(0o755)
    (folder / "steps").unlink(missing_ok=True)
    environment = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"} | options
    command = ["sh", str(ROOT / "examples" / "quickstart.sh"), "MODEL"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=HANGS_S, check=False)
    return (folder / "steps").read_text(encoding="utf-8").splitlines()


def test_a_second_run_of_the_example_goes_on(tmp_path: Path) -> None:
    """What the table has is not made again; after tuning was interrupted, it is tuned."""
    assert steps(tmp_path) == ["sere table", "sere calibrate", "sere tune", "vllm serve"]
    assert steps(tmp_path) == ["sere table", "vllm serve"]
    (tmp_path / "table").write_text("{}", encoding="utf-8")
    assert steps(tmp_path) == ["sere table", "sere tune", "vllm serve"]


def test_the_example_without_tuning(tmp_path: Path) -> None:
    """TUNE=no is no option of the command, but leaves it out."""
    assert steps(tmp_path, TUNE="no") == ["sere table", "sere calibrate", "vllm serve"]
