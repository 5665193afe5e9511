"""Calibrate, then serve: nobody has to say where the table is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

import sere
from sere.cli import main
from sere.defaults import OLD_TABLE, TABLE
from sere.errors import InputError, OutputError, TableError, TableMismatch
from sere.integrations.vllm.start.tables import find_table
from sere.table import SimilarityTable
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import refused, run_json, run_text
from tests.support.hub import Hub

SETTING = ("--setting", "sere:select_top_k=1")
GENERATE = ("--prompt", "add 1+1", "--max-new-tokens", "4")
BENCH = ("--batch-size", "2", "--steps", "2", "--rounds", "1")


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A checkpoint that was calibrated without a word about where the table goes."""
    folder = save_checkpoint(tmp_path)
    (tmp_path / "table.safetensors").unlink()
    before = {*folder.iterdir()}
    _, err = run_text(capsys, "calibrate", folder, "--metric", "weights")
    assert f"serve it with: vllm serve {folder} --additional-config '{{\"sere\": {{}}}}'\n" in err
    assert {*folder.iterdir()} - before == {folder / TABLE}
    return folder


def test_apply_finds_the_table_where_the_model_was_loaded_from(model: Path) -> None:
    """``sere.apply(model, select_top_k=1)`` takes the table in the model's folder."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with sere.apply(loaded, select_top_k=1) as handle:
        assert handle.config is not None
    with sere.apply(loaded, model / TABLE, select_top_k=1):
        pass


def test_apply_says_where_it_looked(tmp_path: Path) -> None:
    """Without a table in the model's folder, the error names file and folder."""
    folder = save_checkpoint(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match=rf"there is no {TABLE} in the model's folder \({folder}\)"):
        sere.apply(loaded, select_top_k=1)


def test_the_table_is_not_read_as_weights(model: Path) -> None:
    """Transformers loads the folder as before, with no weight more or less."""
    loaded, report = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    assert loaded.config.model_type == "qwen3_moe"


def test_generate_finds_the_table_if_a_setting_needs_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a setting that needs a table, a note says which it is; without, the model is as it was."""
    _, err = run_text(capsys, "generate", model, *GENERATE, *SETTING)
    assert f"using the table {model / TABLE}\n" in err
    _, err = run_text(capsys, "generate", model, *GENERATE)
    assert err == ""


def test_bench_and_doctor_find_the_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark's similarities are the table's, and doctor checks it against the model."""
    record = run_json(capsys, "bench", model, *BENCH, "--setting", "off")
    assert record["subject"]["table"] == SimilarityTable.load(model / TABLE).fingerprint
    found = run_json(capsys, "doctor", "--no-measure", "--model", model)["findings"]
    assert {finding["state"] for finding in found if finding["part"] == "table"} == {"ok"}


def test_eval_finds_the_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``sere eval MODEL`` needs no --table."""
    (tmp_path / "prompts.txt").write_text("add 1+2\nthe mill stood\n")
    argv = ("eval", model, "--prompts", tmp_path / "prompts.txt", "--batch-size", 2, "--max-new-tokens", 4)
    record = run_json(capsys, *argv, *SETTING)
    assert len(record["cases"]) == 2


def test_a_missing_table_is_one_line_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is computed; the line names the places and the command that makes a table."""
    folder = save_checkpoint(tmp_path)
    (tmp_path / "prompts.txt").write_text("add 1+2\n")
    line = refused(capsys, "eval", folder, "--prompts", tmp_path / "prompts.txt", *SETTING)
    assert f"{folder} has no {TABLE} in its folder, and the current folder has no checkpoint.sere" in line
    assert f"make one with: sere calibrate {folder}" in line


def test_an_old_table_is_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``sere.safetensors``, the name of older tables, is looked for second."""
    folder = save_checkpoint(tmp_path)
    (tmp_path / "table.safetensors").rename(folder / OLD_TABLE)
    _, err = run_text(capsys, "generate", folder, *GENERATE, *SETTING)
    assert f"using the table {folder / OLD_TABLE}\n" in err


def test_a_hub_model_brings_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that was uploaded with the model is fetched with its config."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    (tmp_path / "table.safetensors").rename(hub.repository / TABLE)
    assert main(["doctor", "--no-measure", "--model", "mill/moe"]) == 0
    assert TABLE in hub.fetched


def test_a_hub_model_is_calibrated_into_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache of the hub is no place for a table: it is the model's name here, and found here."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    monkeypatch.chdir(tmp_path)
    run_text(capsys, "calibrate", "mill/moe", "--metric", "weights")
    assert SimilarityTable.load(tmp_path / "moe.sere").identity.name == "mill/moe"
    _, err = run_text(capsys, "generate", "mill/moe", *GENERATE, *SETTING)
    assert "using the table moe.sere\n" in err


@pytest.mark.parametrize("name", ["mill/moe", "CACHED"], ids=["online", "offline"])
def test_engines_find_the_table_of_a_hub_model_in_the_current_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM, which offline gets the folder in the hub's cache, and Transformers; a line says how to serve."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    monkeypatch.chdir(tmp_path)
    _, err = run_text(capsys, "calibrate", "mill/moe", "--metric", "weights")
    settings = json.dumps({"sere": {"table": str(tmp_path / "moe.sere")}})
    assert f"serve it with: vllm serve mill/moe --additional-config '{settings}'\n" in err
    engine = SimpleNamespace(model=str(hub.cached) if name == "CACHED" else name)
    assert find_table(None, engine) == tmp_path / "moe.sere"
    loaded = AutoModelForCausalLM.from_pretrained(hub.cached)
    loaded.name_or_path = engine.model
    with sere.apply(loaded, select_top_k=1) as handle:
        assert handle.config is not None
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(TableError, match=rf"nor the current folder \({tmp_path.parent}\) a moe.sere"):
        find_table(None, engine)


@pytest.mark.parametrize("name", ["bundled", "checkpoint"], ids=["installed", "read-only"])
def test_a_folder_that_is_no_place_leaves_the_current_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The installed package and a folder that cannot be written stay as they are."""
    from sere.cli import calibrate

    folder = save_checkpoint(tmp_path)
    checked = calibrate.check_writable

    def check(path: Path) -> None:
        if path.parent.absolute() == folder:
            raise OutputError(f"{path}: cannot be written")
        checked(path)

    monkeypatch.setattr(calibrate, "check_writable", check)
    monkeypatch.chdir(tmp_path)
    run_text(capsys, "calibrate", name, "--metric", "weights")
    assert (tmp_path / f"{name}.sere").is_file()
    assert not (folder / TABLE).exists()


def test_a_table_in_the_default_place_is_not_lost(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody named the file that a second calibration would replace: ``--force`` says that it may."""
    before = (model / TABLE).read_bytes()
    texts = model.parent / "texts.txt"
    texts.write_text("some words that are texts\n" * 99)
    command = ("calibrate", model, "--texts", texts, "--metric", "cosine", "--seq-len", "16")
    line = refused(capsys, *command)
    assert f"{model / TABLE}: is there already and would be lost; replace it with --force" in line
    assert (model / TABLE).read_bytes() == before
    run_text(capsys, *command, "--force")
    assert SimilarityTable.load(model / TABLE).metric == "cosine"


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_is_no_table_is_kept_anyway(
    force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even ``--force`` replaces a file that is something else."""
    folder = save_checkpoint(tmp_path)
    (folder / TABLE).write_text("notes")
    line = refused(capsys, "calibrate", folder, "--metric", "weights", *force)
    assert f"{folder / TABLE}: expected a similarity table or no file, got another file" in line
    assert (folder / TABLE).read_text() == "notes"


def test_a_table_that_is_not_found_first_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a hub model that brings a table, a new one must be named to be used."""
    hub = Hub(tmp_path, monkeypatch)
    save_checkpoint(tmp_path).rename(hub.repository)
    (tmp_path / "table.safetensors").rename(hub.repository / TABLE)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _, name, **_options: str(hub.cached / name)
    )
    monkeypatch.chdir(tmp_path)
    _, err = run_text(capsys, "calibrate", "mill/moe", "--metric", "weights")
    assert "without --table moe.sere, the table that comes with the model is used: " in err


@pytest.mark.parametrize("command", ["show", "verify", "diff", "plot"])
def test_the_commands_for_tables_take_a_model(
    command: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``sere table show MODEL`` shows the model's own table; a note says which file it is."""
    others = [model / TABLE] if command == "diff" else []
    _, err = run_text(capsys, "table", command, model, *others)
    assert f"using the table {model / TABLE}\n" in err


def test_a_folder_without_a_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the file that is missing and the command that makes it."""
    line = refused(capsys, "table", "show", tmp_path)
    assert f"there is no {TABLE} in it; make one with: sere calibrate {tmp_path}" in line


def test_the_table_of_another_model_is_named(tmp_path: Path) -> None:
    """Nobody gave the path, so the error must: else it is unclear which file is wrong."""
    folder = save_checkpoint(tmp_path)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    (tmp_path / "table.safetensors").rename(folder / TABLE)
    config.moe_intermediate_size *= 2
    other = AutoModelForCausalLM.from_config(config)
    other.name_or_path = str(folder)
    with pytest.raises(TableMismatch, match=rf"^{folder / TABLE}: the table was calibrated on "):
        sere.apply(other, select_top_k=1)


def test_several_metrics_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One name cannot be that of two tables."""
    folder = save_checkpoint(tmp_path)
    line = refused(capsys, "calibrate", folder, "--texts", __file__, "--metric", "cosine,cka")
    assert "--out: expected a folder for the tables of several metrics; give one with --out DIR" in line
