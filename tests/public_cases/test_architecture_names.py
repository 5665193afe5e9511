"""Checkpoints whose config names an architecture that Transformers lacks, or none, or one of images too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sere.cli import main
from tests.support.checkpoints import tiny_tokenizer
from tests.support.composite import tiny_composite
from tests.support.damage import change_json
from tests.support.tiny import tiny_model

WORDS = "The quick brown fox jumps over the lazy dog. " * 20


def works_everywhere(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calibrate in both ways, verify, doctor, generate and bench: all take the checkpoint."""
    tiny_tokenizer().save_pretrained(path)
    texts, table = path.with_suffix(".txt"), path.with_suffix(".safetensors")
    texts.write_text(WORDS)
    calibrate = ["calibrate", path, "--texts", texts, "--max-tokens", 128, "--seq-len", 16, "--out", table]
    for how in ("--whole", "--low-memory"):
        assert main([str(word) for word in [*calibrate, how]]) == 0
    for command in (
        ["table", "verify", table, "--model", path],
        ["doctor", "--no-measure", "--model", path, "--table", table],
        [
            "bench",
            path,
            "--table",
            table,
            "--batch-size",
            2,
            "--steps",
            2,
            "--rounds",
            1,
            "--setting",
            "sere:active_experts=0",
        ],
    ):
        assert main([str(word) for word in command]) == 0, command
    capsys.readouterr()
    generate = [
        "generate",
        path,
        "--table",
        table,
        "--setting",
        "sere:active_experts=0",
        "--max-new-tokens",
        4,
        "--json",
    ]
    assert main([*map(str, generate), "--prompt", "add", "--prompt", "x+1"]) == 0
    experts = json.loads(capsys.readouterr().out)["experts"]
    assert experts["distinct_after"] < experts["distinct_before"]


@pytest.mark.parametrize("architectures", [["PhiMoEForCausalLM"], None])
def test_a_phi_moe_as_it_is_on_the_hub_works_with_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architectures: list[str] | None
) -> None:
    """Its config says PhiMoEForCausalLM, which Transformers writes otherwise; or it says nothing."""
    path = tmp_path / "phi"
    tiny_model("phimoe", vocab_size=len(tiny_tokenizer())).save_pretrained(path)
    works_everywhere(change_json(path / "config.json", architectures=architectures), capsys)


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_a_model_of_text_and_images_works_with_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Whether or not Transformers has a causal class for it."""
    tiny_composite(name, vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path / "model")
    works_everywhere(tmp_path / "model", capsys)
