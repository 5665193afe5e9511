"""The page of transcripts: it has each command of its script, with output, and no path of a machine."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from transcripts import COLUMNS, DOCUMENT, MODELS, shown, steps

pytestmark = pytest.mark.checkout

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("model", MODELS)
def test_the_page_has_every_command_with_its_output(model: str) -> None:
    """In their order, below the model's heading: `make transcripts` was run after the last change."""
    section = (
        DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {MODELS[model]}\n")[2].partition("\n## ")[0]
    )
    blocks = FENCED.findall(section)
    found = [
        (" ".join(line.replace("\\\n", " ").split()), bool(output.strip()))
        for (language, line), (other, output) in pairwise(blocks)
        if (language, other) == ("", "text")
    ]
    assert found == [(step.line, True) for step in steps(model)]
    assert re.findall(r"^### (.*)$", FENCED.sub("", section), re.MULTILINE) == [
        step.title for step in steps(model)
    ]


def test_each_kind_of_command_is_among_them() -> None:
    """Both ways to calibrate, tuning, lm-eval, tables, and what is said of a config alone."""
    lines = [step.line for step in steps("olmoe")]
    wanted = (
        "doctor", "calibrate", "calibrate .* --engine vllm", "tune", "eval", "lm-eval", "table show",
        "table push", "table pull",
    )  # fmt: skip
    assert [one for one in wanted if not any(re.match(f"sere {one} ", f"{line} ") for line in lines)] == []


def test_no_path_of_a_machine_is_on_the_page() -> None:
    """Folders of the machine that ran the commands have names."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:tmp|home|root|work|usr|opt|var|mnt)\b\S*|127\.0\.0\.1\S*", text) == []


def test_output_is_shown_by_names_and_wrapped() -> None:
    """The longest path counts; a line that was overwritten is what stayed; colors are gone."""
    names = {"/a": "ROOT", "/a/b/": "", "http://x:1": "HUB"}
    text = "10 %\r100 %\n\x1b[1mwrote\x1b[0m /a/b/c at http://x:1/d, not /a\n  " + "word " * 40 + "\n"
    first, second, *wide = shown(text, names).splitlines()
    assert (first, second) == ("100 %", "wrote c at HUB/d, not ROOT")
    assert len(wide) == 2
    assert max(map(len, wide)) <= COLUMNS
    assert wide[1].startswith("      word")
