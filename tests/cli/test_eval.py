"""``sere eval``: what it asks which model, what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sere.bundled import BUNDLED, knows_tasks, model_path
from sere.cli import main
from sere.eval.continuations import ContinuationScores
from sere.policies.spec import PolicySpec
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import run_json, run_text

SERE, TOPK = "sere:select_top_k=1", "topk:select_top_k=1"
TASKS = ("--per-task", 1, "--tasks", "addition", "sorting", "reversal", "--max-new-tokens", 6)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("add 1+2\nthe mill stood\nsort 7 3\n\nreverse abc\n")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows: list[Any] = [{"prompt": f"add {i}", "answer": i, "pattern": r"\w"} for i in range(5)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, None]))
    return path


def test_a_model_that_knows_the_tasks_is_asked_them(
    capsys: pytest.CaptureFixture[str], tiny_bundled: Path, similarities: Path, tmp_path: Path
) -> None:
    """By default SERE and its two controls stand beside off, at each batch size."""
    out = tmp_path / "out" / "eval.json"
    argv = ["eval", tiny_bundled, "--table", similarities, "--batch-size", 1, 2, *TASKS]
    record = run_json(capsys, *argv, "--passages", 3, "--out", out)
    assert json.loads(out.read_text()) == record
    names = ["off", "sere", "random", "drop"]
    assert [(case["batch_size"], case["setting"]) for case in record["cases"]] == [
        (B, name) for B in (1, 2) for name in names
    ]
    assert list(out.parent.iterdir()) == [out]
    off, sere = record["cases"][4:6]
    assert (
        off["experts"]["distinct_before"]
        == off["experts"]["distinct_after"]
        > sere["experts"]["distinct_after"]
    )
    assert sere["tasks"]["all"]["n"] == 3
    assert sere["text"]["kl"] > off["text"]["kl"]


def test_tasks_print_two_tables(
    capsys: pytest.CaptureFixture[str], tiny_bundled: Path, similarities: Path
) -> None:
    """For people: one row a case, over all tasks and by task; progress goes to stderr."""
    argv = ["eval", tiny_bundled, "--table", similarities, "--batch-size", 2, *TASKS, "--passages", 3]
    out, err = run_text(capsys, *argv, "--setting", "sere:select_top_k=1")
    assert out.count("sere:select_top_k=1") >= 2
    assert "perplexity" in out
    assert "reversal" in out
    assert "B=2 sere:select_top_k=1: done" in err


def test_any_model_is_compared_with_itself_on_prompts(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path, prompts: Path, tmp_path: Path
) -> None:
    """A record of agreement, divergence and perplexity; the table says what is what."""
    out = tmp_path / "eval.json"
    argv = ["eval", checkpoint, "--table", similarities, "--prompts", prompts, "--batch-size", 2]
    argv += ["--max-new-tokens", 8, "--setting", SERE, "--setting", f"{SERE},active_experts=15"]
    record = run_json(capsys, *argv, "--out", out)
    assert json.loads(out.read_text()) == record
    assert record["plan"]["prompts"] == {"file": "prompts.txt", "count": 4, "skipped": 0}
    off, sere, idle = record["cases"]
    assert off["kl"]["value"] < 1e-6 < sere["kl"]["value"]
    assert off["agreement"]["value"] == 1
    assert idle["nothing_changed"].startswith("nothing was re-routed: active_experts=15")
    shown, err = run_text(capsys, *argv)
    assert "continuations: done" in err
    assert "agree %" in shown
    assert f"{record['continuations']['prompts']} prompts, " in shown
    assert f"B=2 {SERE},active_experts=15: nothing was re-routed: active_experts=15 is not below" in shown


def test_any_model_is_asked_questions_of_a_file(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, questions: Path
) -> None:
    """Right answers with the paired difference; skipped rows and small steps are said."""
    argv = ["eval", checkpoint, "--questions", questions, "--batch-size", 8, "--setting", TOPK]
    argv += ["--max-new-tokens", 4]
    record = run_json(capsys, *argv)
    assert record["plan"]["source"] == {"file": "questions.jsonl", "count": 5, "skipped": 1}
    off, reduced = record["cases"]
    assert off["tasks"]["all"]["n"] == 5
    assert {"value", "low", "high"} == set(reduced["tasks"]["all"]["difference"])
    shown, _ = run_text(capsys, *argv)
    assert "5 questions." in shown
    assert "perplexity" not in shown
    assert "1 rows of the file are null or blank and were skipped." in shown
    assert "B=8: steps had only 5 rows" in shown


def test_texts_take_the_chat_template_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str], prompts: Path, tmp_path: Path
) -> None:
    """A tokenizer's template makes prompts a user's messages, and the table says so."""
    path = save_checkpoint(tmp_path, "olmoe")
    (path / "chat_template.jinja").write_text("<u>{{ messages[0]['content'] }}<a>")
    argv = [
        "eval",
        path,
        "--prompts",
        prompts,
        "--batch-size",
        2,
        "--setting",
        TOPK,
        "--max-new-tokens",
        4,
    ]
    chat = run_json(capsys, *argv)
    plain = run_json(capsys, *argv, "--no-chat-template")
    assert chat["plan"]["chat_template"] is True
    assert plain["plan"]["chat_template"] is False
    lengths = [record["continuations"]["prompt_tokens"] for record in (chat, plain)]
    assert lengths[0] > lengths[1]
    assert "given to the model as a user's message" in run_text(capsys, *argv)[0]


def test_models_with_the_bundled_tokenizer_know_the_tasks(tmp_path: Path, tiny_bundled: Path) -> None:
    """Its own folder, a saved tokenizer and a model of other sizes do; other tokenizers do not."""
    assert knows_tasks(BUNDLED)
    assert knows_tasks(str(model_path()))
    saved = tmp_path / "saved"
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(saved)
    assert knows_tasks(saved)
    assert knows_tasks(tiny_bundled)
    (tiny_bundled / "tokenizer.json").unlink()
    assert not knows_tasks(tiny_bundled)
    assert not knows_tasks(save_checkpoint(tmp_path))
    assert not knows_tasks("owner/model")


def test_an_interrupted_run_goes_on_with_the_same_prompts_only(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
) -> None:
    """Finished cases are kept on Ctrl-C; the same command goes on; other prompts are said to differ."""
    out, other = tmp_path / "eval.json", tmp_path / "other.txt"
    other.write_text("a\nb\n")
    flags = [
        "--setting",
        TOPK,
        "--batch-size",
        "2",
        "--max-new-tokens",
        "6",
        "--out",
        str(out),
    ]

    def evaluated(file: Path) -> tuple[int, str]:
        code = main(["eval", str(checkpoint), "--prompts", str(file), *flags])
        return code, capsys.readouterr().err

    measure = ContinuationScores.case

    def interrupted(scores: ContinuationScores, setting: PolicySpec, batch_size: int) -> dict[str, Any]:
        if setting.name == "topk":
            raise KeyboardInterrupt
        return measure(scores, setting, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(ContinuationScores, "case", interrupted)
        code, err = evaluated(prompts)
    assert (code, out.exists()) == (130, False)
    assert "the same command continues after them" in err
    kept = tmp_path / ".eval.json.partial"
    before = kept.read_text()
    code, err = evaluated(prompts)
    assert code == 0
    assert "B=2 topk:select_top_k=1: done" in err
    assert "B=2 off: done" not in err
    assert not kept.exists()
    kept.write_text(before)
    code, err = evaluated(other)
    assert "prompts.file was prompts.txt, now other.txt" in caplog.text
    assert "the prompts differ" in caplog.text
    assert "B=2 off: done" in err
