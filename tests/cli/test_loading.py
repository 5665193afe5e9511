"""Which model and table a command takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.cli.loading import dtype_name
from sere.errors import ConfigError
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import refused


def test_the_dtype_of_a_checkpoint_is_that_of_its_config(tmp_path: Path) -> None:
    """For an engine that loads by itself, auto is what the config names; one that names none must be told."""
    path = save_checkpoint(tmp_path)
    assert dtype_name(path, "auto") == "float32"
    assert dtype_name(path, "float16") == "float16"
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"--dtype auto: the config of .* has no dtype; choose one of bfloat16"
    ):
        dtype_name(path, "auto")


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that does not exist is named."""
    assert "./nowhere" in refused(capsys, "generate", "./nowhere", "--prompt", "a")


def test_a_model_type_that_only_vllm_knows_reaches_its_engine(
    only_in_vllm: list[str | Path], not_started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer is loaded without Transformers' config, and ``auto`` is left to vLLM."""
    assert refused(capsys, "eval", *only_in_vllm).endswith("no engine in this test")
    assert [options["dtype"] for options in not_started] == ["auto"]
