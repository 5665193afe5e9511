"""``sere generate``: completions on stdout, what changed on stderr, and what it refuses."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import refused, run_json, run_text


def test_generate_knows_finished_rows_without_a_pad_token_in_the_config(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path, tmp_path: Path
) -> None:
    """The token that generate feeds to finished rows is the one that re-routing takes for their mark."""
    seen: list[dict[str, Any]] = []
    module = import_module("sere.integrations.transformers")
    original = module.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "apply", lambda *a, **k: seen.append(k) or original(*a, **k))
        run_json(capsys, "generate", checkpoint, "--prompt", "a", "--table", similarities)
    assert isinstance(seen[0]["pad_token_id"], int)


def test_generate_completes_prompts(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path, tmp_path: Path
) -> None:
    """Without a table the model is untouched; with one, the statistics say what changed."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo more\n")
    argv = ["generate", checkpoint, "--prompt", "add 1+1", "--prompt-file", prompts, "--max-new-tokens", 5]
    plain = run_json(capsys, *argv)
    assert [one["prompt"] for one in plain["completions"]] == ["add 1+1", "one", "two more"]
    assert plain["setting"] is None
    assert plain["experts"] is None
    setting = "sere:select_top_k=1,targets=active,merge=same"
    routed = run_json(capsys, *argv, "--table", similarities, "--setting", setting)
    assert routed["setting"] == "sere:select_top_k=1,targets=active,merge=same"
    assert routed["experts"]["distinct_after"] < routed["experts"]["distinct_before"]
    out, err = run_text(capsys, *argv, "--table", similarities)
    assert out.startswith(plain["completions"][0]["prompt"])
    assert err.startswith("distinct experts per layer")


def test_generate_says_why_nothing_was_re_routed(
    checkpoint: Path,
    similarities: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One new token comes from prefill, so no decode step ran: a line says so, and the texts are printed."""
    argv = ["generate", checkpoint, "--prompt", "a", "--table", similarities, "--max-new-tokens", 1]
    value = run_json(capsys, *argv)
    assert "no decode step was seen in 1 call of the model" in value["nothing_changed"]
    assert any(value["nothing_changed"] in record.getMessage() for record in caplog.records)
    out, err = run_text(capsys, *argv)
    assert out.startswith("a")
    assert "distinct experts" not in err


def test_generate_puts_conversations_through_the_chat_template(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """Rows of messages become the template's text up to the opening of an answer, beside plain prompts."""
    from transformers import AutoTokenizer

    copied = tmp_path / "chat"
    shutil.copytree(checkpoint, copied)
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} assistant:{% endif %}"
    )
    tokenizer.save_pretrained(copied)
    rows = [{"prompt": [{"role": "user", "content": "add 1+1"}]}, {"prompt": "one"}]
    (tmp_path / "rows.JSONL").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    argv = ["generate", copied, "--prompt-file", tmp_path / "rows.JSONL", "--max-new-tokens", 3]
    prompts = [one["prompt"] for one in run_json(capsys, *argv)["completions"]]
    assert prompts == ["user: add 1+1 assistant:", "one"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "at least one prompt"),
        (
            ["--prompt", "a", "--setting", "sere:select_top_k=1"],
            "sere:select_top_k=1: needs a similarity table; give one with --t",
        ),
        (
            ["--prompt", "a", "--table", "SIMILARITIES", "--setting", "sere:select_top_k=1,use_scale=true"],
            "has no factors",
        ),
        (
            ["--prompt", "a", "--max-new-tokens", "0"],
            "argument --max-new-tokens: expected a whole number of at least 1",
        ),
        (["--prompt-file", "nowhere.txt"], "--prompt-file: no file nowhere.txt; give a .txt"),
        (["--prompt-file", "BLANK"], "blank.txt holds no prompt; expected one per line"),
        (["--prompt-file", "BINARY"], "binary.txt is a binary file (it has null bytes); expected text"),
        (["--prompt-file", "LATIN"], "latin.txt is not UTF-8"),
        (["--prompt-file", "."], "--prompt-file: . is a folder"),
        (["--prompt-file", "ROWS"], "rows.jsonl line 1 has no field 'prompt'; it has body; choose one"),
        (["--prompt-file", "ROWS", "--field", "body"], "rows.jsonl line 2 holds no prompt (null or blank)"),
        (["--prompt", ""], "--prompt: expected a non-empty prompt"),
        # An unset variable of a shell is no wish for the default.
        (["--prompt", "a", "--setting", ""], "setting '': unknown policy ''"),
    ],
)
def test_generate_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    similarities: Path,
    tmp_path: Path,
    argv: list[str],
    line: str,
) -> None:
    """What is missing is named, with the option that gives it, before the model is loaded."""
    monkeypatch.setattr("sere.cli.generate.load", lambda _: pytest.fail("loaded"))
    files = {
        "blank.txt": b" \n\n", "binary.txt": b"a\0b", "latin.txt": "é".encode("latin-1"),
        "rows.jsonl": b'{"body": "add 1+1"}\n{"body": null}\n',
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    words = {name.partition(".")[0].upper(): tmp_path / name for name in files} | {
        "SIMILARITIES": similarities
    }
    argv = [str(words.get(word, word)) for word in argv]
    assert line in refused(capsys, "generate", checkpoint, *argv)


def test_generate_takes_any_setting(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    """Another rule needs no table, and off counts; of both the experts are reported."""
    argv = ["generate", checkpoint, "--prompt", "add 1+1", "--max-new-tokens", 3, "--setting"]
    off, reduced = run_json(capsys, *argv, "off"), run_json(capsys, *argv, "topk:select_top_k=1")
    assert (off["setting"], reduced["setting"]) == ("off", "topk:select_top_k=1")
    assert (
        off["experts"]["distinct_before"]
        == off["experts"]["distinct_after"]
        > reduced["experts"]["distinct_after"]
    )
