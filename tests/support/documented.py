"""Lines that the documents show for lm-eval's own command."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluating.md"


def documented_line(model: str) -> tuple[list[str], dict[str, Any]]:
    """Return the words of the line for a model class of lm-eval, and what its ``--model_args`` hold."""
    blocks: list[str] = re.findall(
        r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (words,) = (shlex.split(block) for block in blocks if f"--model {model} " in block)
    return words, json.loads(words[words.index("--model_args") + 1])


def with_values(words: Sequence[str], **values: str) -> list[str]:
    """Return words of a command line with other values of some options, each of which is there once."""
    changed = list(words)
    for name, value in values.items():
        assert changed.count(f"--{name}") == 1, (name, changed)
        changed[changed.index(f"--{name}") + 1] = value
    return changed
