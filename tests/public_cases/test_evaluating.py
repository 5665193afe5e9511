"""``sere eval`` measures the model that it is given, or says what to give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sere.cli import main
from tests.support.checkpoints import save_checkpoint


@pytest.fixture(params=["qwen2_moe", "olmoe"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, request.param)


def evaluated(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    assert main(["eval", *map(str, argv), "--batch-size", "4", "--max-new-tokens", "8", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["cases"]


def test_evaluating_ones_own_model_with_prompts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off agrees with the unmodified model; by how much a setting with fewer experts differs is said."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\nThe answer is\nA list of\nWhy\nBecause\n")
    table = tmp_path / "table.safetensors"
    off, sere = evaluated(
        capsys, model, "--table", table, "--setting", "sere:active_experts=0", "--prompts", prompts
    )
    assert off["agreement"]["value"] == 1
    assert off["kl"]["value"] < 1e-6
    assert sere["experts"]["distinct_after"] < sere["experts"]["distinct_before"]
    assert sere["kl"]["low"] > 1e-3
    assert sere["agreement"]["high"] < 1


def test_prompts_in_a_table_of_commas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are no prompts: they hold a header, commas and quotes."""
    model = save_checkpoint(tmp_path)
    (tmp_path / "prompts.csv").write_text("id,prompt\n1,Why\n")
    assert (
        main(
            [
                "eval",
                str(model),
                "--setting",
                "topk:select_top_k=1",
                "--prompts",
                str(tmp_path / "prompts.csv"),
            ]
        )
        == 2
    )
    assert "prompts.csv ends in '.csv'; expected one of .txt, .jsonl" in capsys.readouterr().err


def test_evaluating_ones_own_model_with_questions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the unmodified model says is right by construction, so off is right and a reduction is not."""
    texts = ["Once upon a time", "The answer is", "A list of", "Why", "Because"]
    argv = ["generate", model, "--max-new-tokens", 8, "--json"]
    assert main([*map(str, argv), *(word for text in texts for word in ("--prompt", text))]) == 0
    said = [one["text"] for one in json.loads(capsys.readouterr().out)["completions"]]
    # A token is a character here; a shorter text ends with the end token, which is shown as one too.
    rows = [
        {"prompt": text, "answer": answer}
        for text, answer in zip(texts, said, strict=True)
        if len(answer) == 8
    ]
    assert len(rows) > 2
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    off, reduced = evaluated(capsys, model, "--setting", "topk:select_top_k=1", "--questions", questions)
    assert off["tasks"]["all"]["share"]["value"] == 1
    assert reduced["tasks"]["all"]["difference"]["value"] < 0


def test_evaluating_ones_own_model_without_either_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled model's notation is not put to another model: one line says what to give."""
    table = tmp_path / "table.safetensors"
    assert main(["eval", str(model), "--table", str(table), "--setting", "sere:select_top_k=2"]) == 2
    assert "Give --prompts FILE" in capsys.readouterr().err
