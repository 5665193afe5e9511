"""The commands on a tiny checkpoint: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sere.cli import main
from sere.cli.loading import dtype_name
from sere.errors import ConfigError
from sere.versions import TESTED
from tests.support.checkpoints import save_checkpoint


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """Run a command with --json and return what it printed; stdout holds nothing else."""
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_dtype_of_a_checkpoint_is_that_of_its_config(tmp_path: Path) -> None:
    """For an engine that loads by itself, auto is what the config names; one that names none must be told."""
    path = save_checkpoint(tmp_path)
    assert dtype_name(path, "auto") == "float32"
    assert dtype_name(path, "float16") == "float16"
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"--dtype: the config of .* names none; choose one of bfloat16"):
        dtype_name(path, "auto")


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that does not exist is named."""
    assert main(["generate", "./nowhere", "--prompt", "a"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_bench_writes_one_line_a_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each case is one JSON line, on stdout and appended to --out, with its unit and conditions."""
    out = tmp_path / "results" / "bench.jsonl"
    sizes = ["--batch-size", "1", "4", "--steps", "2", "--rounds", "1"]
    argv = ["bench", "--preset", "tiny", *sizes, "--setting", "sere:select_top_k=1", "--json"]
    assert main([*argv, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    records = [json.loads(line) for line in printed.splitlines()]
    assert [record["case"] for record in records] == [
        "B=1 off",
        "B=1 sere:select_top_k=1",
        "B=4 off",
        "B=4 sere:select_top_k=1",
    ]
    last = records[-1]
    assert last["unit"] == "ms"
    assert last["subject"]["weights"] == "random"
    assert {"machine", "versions", "commit", "clean_tree"} <= set(last["provenance"])
    assert last["experts"]["after"] < last["experts"]["before"]
    assert last["hook"]["us_per_layer"] > 0
    assert records[2]["hook"] is None
    assert records[2]["ratio_off_to_this"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}


def test_bench_times_a_checkpoint_with_its_table(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path
) -> None:
    """A checkpoint is timed with the similarities of its table; the table for people has a row a case."""
    argv = ["bench", checkpoint, "--table", similarities, "--batch-size", 2, "--steps", 2, "--rounds", 1]
    assert main([str(word) for word in argv]) == 0
    out = capsys.readouterr().err
    assert "off/this" in out
    assert "sere:select_top_k=2" in out


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "expected either MODEL or --preset"),
        (["--preset", "qwen3-30b"], "did you mean 'qwen3-30b-a3b'"),
        (["--preset", "mixtral-8x7b", "--layers", "33"], "expected 1 to 32 for mixtral-8x7b, got 33"),
        (["--preset", "tiny", "--rounds", "0"], "argument --rounds: expected a whole number of at least 1"),
        (["x", "--layers", "2"], "--layers: only a --preset"),
        (["--preset", "tiny", "--out", "."], ".: expected a file or a free name, got a folder"),
    ],
)
def test_bench_refuses_in_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    """Wrong names and sizes are found before anything is made."""
    assert main(["bench", *argv]) == 2
    assert line in capsys.readouterr().err


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
    assert routed["experts"]["after"] < routed["experts"]["before"]
    assert main([str(word) for word in [*argv, "--table", similarities]]) == 0
    out = capsys.readouterr().err
    assert plain["completions"][0]["prompt"] in out
    assert "distinct experts per layer" in out


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
    assert main([str(part) for part in argv]) == 0
    assert "distinct experts" not in capsys.readouterr().err


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
            "has no scale",
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
        (["--prompt", ""], "--prompt: expected a prompt that is not empty"),
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
    assert main(["generate", str(checkpoint), *argv]) == 2
    assert line in capsys.readouterr().err


def test_generate_takes_any_setting(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    """A rival needs no table, and off counts; of both the experts are reported."""
    argv = ["generate", checkpoint, "--prompt", "add 1+1", "--max-new-tokens", 3, "--setting"]
    off, reduced = run_json(capsys, *argv, "off"), run_json(capsys, *argv, "topk:select_top_k=1")
    assert (off["setting"], reduced["setting"]) == ("off", "topk:select_top_k=1")
    assert off["experts"]["before"] == off["experts"]["after"] > reduced["experts"]["after"]


def test_doctor_finds_everything_in_order(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, similarities: Path
) -> None:
    """Model and table that fit give code 0; versions, backends and extras are all there."""
    value = run_json(capsys, "doctor", "--model", checkpoint, "--table", similarities)
    assert value["passed"]
    parts = {finding["part"] for finding in value["findings"]}
    assert {"versions", "machine", "backends", "extras", "model", "table"} <= parts
    states = {(finding["part"], finding["name"]): finding["state"] for finding in value["findings"]}
    assert states["backends", "reference"] == "ok"
    assert states["extras", "transformers"] == "ok"
    model, weights = (finding for finding in value["findings"] if finding["part"] == "model")
    assert "K=4 (S < 4 re-routes)" in model["detail"]
    assert weights["state"] == "ok"
    assert "; complete" in weights["detail"]


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_doctor_says_which_releases_are_tested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The tested range stands beside the release; one outside is untested, which is not broken."""

    def line(release: str) -> dict[str, str]:
        monkeypatch.setattr("sere.provenance.versions", lambda: {package: release})
        value = run_json(capsys, "doctor")
        assert value["passed"]
        (found,) = (f for f in value["findings"] if (f["part"], f["name"]) == ("versions", package))
        return found

    oldest, newest = TESTED[package]
    within, beyond = line(f"{newest}.1"), line("99.0.0")
    assert (within["state"], within["detail"]) == ("ok", f"{newest}.1 (tested: {oldest} to {newest})")
    assert beyond["state"] == "untested"
    assert (
        f"99.0.0 is newer than what sere is tested with ({oldest} to {newest}): check that"
        in beyond["detail"]
    )


def test_doctor_exits_1_where_table_and_model_do_not_fit(
    capsys: pytest.CaptureFixture[str], similarities: Path, tmp_path: Path
) -> None:
    """A table of another model, a missing table and a missing model are broken; the rest is still shown."""
    other = save_checkpoint(tmp_path, "olmoe")
    assert main(["doctor", "--model", str(other), "--table", str(similarities)]) == 1
    out = capsys.readouterr().err
    assert "BROKEN" in out
    assert "backends" in out
    assert main(["doctor", "--table", "nowhere.safetensors"]) == 1
    assert main(["doctor", "--model", "./nowhere"]) == 1


def test_doctor_says_why_a_backend_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without numba the cpu backend's line gives the install line, and nothing is broken."""
    # By module object: the name sere.reroute is the function.
    monkeypatch.setattr(import_module("sere.reroute.backends.registry"), "_installed", lambda _: False)
    value = run_json(capsys, "doctor")
    (finding,) = (f for f in value["findings"] if (f["part"], f["name"]) == ("backends", "cpu"))
    assert finding["state"] == "missing"
    assert "pip install 'sere[cpu]'" in finding["detail"]
