"""What ``sere eval`` refuses, in one line, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import refused


@pytest.mark.parametrize("flags", [[], ["--setting", "topk:select_top_k=1"], ["--tasks", "addition"]])
@pytest.mark.parametrize("model", ["CHECKPOINT", "owner/model"])
def test_tasks_need_the_bundled_tokenizer(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    model: str,
    flags: list[str],
) -> None:
    """Another model is refused before it is loaded, with what to give; a hub name before it is fetched."""
    monkeypatch.setattr("sere.cli.eval_engines.load", lambda _: pytest.fail("loaded"))
    line = refused(capsys, "eval", checkpoint if model == "CHECKPOINT" else model, *flags)
    assert "own tasks need the bundled model's tokenizer" in line
    assert "Give --prompts FILE" in line
    assert "or --questions FILE" in line


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["bundled", "--setting", "ser:S=1"], "did you mean 'sere'"),
        (["bundled", "--setting", "off", "--tasks", "adition"], "did you mean 'addition'"),
        (["bundled", "--setting", "off", "--per-task", "0"], "argument --per-task: expected a whole number"),
        (["bundled", "--setting", "off", "--batch-size", "0"], "argument --batch-size: expected a whole"),
        (["bundled", "--table", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["bundled", "--setting", "random:select_top_k=0"],
            "select_top_k: expected an integer of at least 1, got 0",
        ),
        (["bundled", "--setting", "off", "--out", "/dev/null/eval.json"], "/dev/null"),
        (["bundled", "--setting", "off", "--device", "nonsense"], "--device nonsense: not usable here"),
        (
            ["bundled", "--setting", "off", "--max-new-tokens", "0"],
            "argument --max-new-tokens: expected",
        ),
        (["bundled", "--no-chat-template"], "--no-chat-template: only with --prompts or --questions"),
        (
            ["bundled", "--questions", "50"],
            "for the number of questions per task of 'bundled', use --per-task 50",
        ),
        (
            ["x", "--questions", "q.jsonl", "--setting", "sere:select_top_k=1"],
            "--table: none was given, x has no similarity.sere in its folder",
        ),
        (
            ["x", "--questions", "q.jsonl", "--metric", "cosine", "--setting", "off"],
            "--metric: only for 'bundled' or a model with its tokenizer, without --table",
        ),
        (["x", "--questions", "q.jsonl", "--setting", "off"], "questions: no file q.jsonl"),
        (["x", "--prompts", "p.txt", "--setting", "off"], "prompts: no file p.txt"),
        (
            ["x", "--prompts", "p.txt", "--per-task", "5"],
            "--per-task: only for sere's own tasks",
        ),
        (["x", "--prompts", "p.txt", "--no-text"], "--passages or --no-text: only for sere's own tasks"),
        (["x", "--prompts", "p.txt", "--questions", "q.jsonl"], "not allowed with argument --prompts"),
        (["x", "--prompts", "p.txt", "--engine", "vllm"], "--prompts: vLLM does not return the logits"),
        (
            ["x", "--questions", "q.jsonl", "--engine", "vllm"],
            "--table: none was given, x has no similarity.sere in its folder",
        ),
        (["x", "--engine-option", "max_model_len=64"], "--engine-option: only applies to --engine vllm"),
        (
            ["x", "--engine", "vllm", "--engine-option", "max-num-seqs=4"],
            "--engine-option max_num_seqs: sere eval sets it itself; use --batch-size",
        ),
        (
            ["x", "--engine", "vllm", "--engine-option", "tensor_parallel_size=2"],
            "vLLM in several processes runs sere and off only, got random, drop; choose",
        ),
        (
            [
                "x",
                "--engine",
                "vllm",
                "--setting",
                "topk:select_top_k=1",
                "--engine-option",
                "enforce_eager=false",
            ],
            "vLLM compiled runs sere and off only, got topk:select_top_k=1; choose with --setting sere",
        ),
    ],
)
def test_eval_refuses_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    """Wrong settings, tasks, sizes, files and combinations each give one line and code 2."""
    assert line in refused(capsys, "eval", *argv)


def test_continuations_of_one_token_are_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """A single token comes from prefill: there is no decode step to score."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("add 1+2\n")
    argv = ["eval", checkpoint, "--setting", "off", "--prompts", prompts, "--max-new-tokens", 1]
    assert "max_new_tokens: expected at least 2, got 1" in refused(capsys, *argv)
