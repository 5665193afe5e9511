"""A table on the hub: push it, then name its repository wherever a table is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import sere
from sere.cli import main
from sere.cli.loading import table_to_write
from sere.defaults import TABLE
from sere.errors import HubError, TableMismatch
from sere.integrations.vllm.start.tables import find_table
from sere.table import SimilarityTable, locate_table
from tests.support.checkpoints import save_checkpoint
from tests.support.commands import refused, run_json, run_text
from tests.support.hub_server import TOKEN, HubServer, serving

# The client's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "mill/moe-sere"
SETTING = ("--setting", "sere:select_top_k=1")
GENERATE = ("--prompt", "add 1+1", "--max-new-tokens", "4")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and a user who is logged in; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serving(tmp_path / "cache", monkeypatch) as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(hub: HubServer, tmp_path: Path) -> Path:
    """A checkpoint without a table, whose table is on the hub."""
    folder = save_checkpoint(tmp_path)
    (tmp_path / "table.safetensors").unlink()
    sere.calibrate(folder, metric="weights").push_to_hub(NAME)
    return folder


def test_push_says_where_it_is_and_how_to_use_it(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A calibrated model is enough; a private repository is private."""
    folder = save_checkpoint(tmp_path)
    (tmp_path / "table.safetensors").rename(folder / TABLE)
    out, err = run_text(capsys, "table", "push", folder, NAME, "--private", "--base-model", "mill/moe")
    commit = hub.repositories[NAME].branches["main"]
    assert out == f"{hub.url}/{NAME}/commit/{commit}\n"
    assert f'use it with: sere.apply(model, "{NAME}"), or "table": "{NAME}" in vLLM\n' in err
    assert hub.repositories[NAME].private
    assert b"base_model: mill/moe\n" in hub.repositories[NAME].commits[commit]["README.md"]
    value = run_json(capsys, "table", "push", folder, NAME, "--pr")
    assert value == {"repository": NAME, "commit": None, "url": f"{hub.url}/{NAME}/discussions/1"}


def test_pull_writes_the_file_that_commands_find(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the model's name, in the current folder; a table that is there is lost only with --force."""
    run_text(capsys, "table", "pull", NAME)
    _, err = run_text(capsys, "generate", model, *GENERATE, *SETTING)
    assert "using the table checkpoint.sere\n" in err
    assert "checkpoint.sere: is there already and would be lost" in refused(capsys, "table", "pull", NAME)
    run_text(capsys, "table", "pull", NAME, "--force")
    value = run_json(capsys, "table", "pull", NAME, "--out", "other.sere")
    assert (value["table"], value["model"]) == ("other.sere", "checkpoint")
    assert SimilarityTable.load("other.sere").fingerprint == value["fingerprint"]


@pytest.mark.parametrize("given", [NAME, f"{NAME}@main"])
def test_apply_takes_a_repository(model: Path, given: str) -> None:
    """As the table, and among the settings."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with sere.apply(loaded, given, select_top_k=1) as handle:
        assert handle.config is not None
    with sere.apply(loaded, table=None, config=sere.RerouteConfig(select_top_k=1, table=given)):
        pass


def test_the_table_of_another_model_is_refused_by_the_repositorys_name(model: Path) -> None:
    """As a file is: by its architecture, before anything is changed."""
    config = AutoModelForCausalLM.from_pretrained(model).config
    config.moe_intermediate_size *= 2
    with pytest.raises(TableMismatch, match=rf"^{NAME}: the table was calibrated on "):
        sere.apply(AutoModelForCausalLM.from_config(config), NAME, select_top_k=1)


def test_commands_take_a_repository(
    model: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--table`` of what decodes and measures, and the commands for tables; it is downloaded once."""
    run_text(capsys, "generate", model, *GENERATE, *SETTING, "--table", NAME)
    assert run_json(capsys, "table", "show", NAME)["metric"] == "weights"
    run_text(capsys, "table", "verify", NAME, "--model", model)
    findings = run_json(capsys, "doctor", "--no-measure", "--model", model, "--table", NAME)["findings"]
    assert {finding["state"] for finding in findings if finding["part"] == "table"} == {"ok"}
    assert hub.downloads(TABLE) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run_text(capsys, "generate", model, *GENERATE, *SETTING, "--table", NAME)


def test_a_repository_that_is_missing_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For doctor, a finding."""
    line = refused(capsys, "generate", model, *GENERATE, *SETTING, "--table", "mill/none")
    assert "table: there is no file mill/none here, and of the hub: mill/none: the hub (" in line
    assert main(["doctor", "--table", "mill/none"]) == 1
    assert "has no such repository" in capsys.readouterr().out


def test_what_changes_a_table_does_not_write_into_the_hubs_cache(model: Path, tmp_path: Path) -> None:
    """``sere tune`` writes where it read, or else to the current folder, under the model's name."""
    fetched = locate_table(NAME)
    assert table_to_write(fetched, str(model)) == Path("checkpoint.sere")
    assert table_to_write(None, str(model)) == Path("checkpoint.sere")
    assert table_to_write(tmp_path / TABLE, str(model)) == tmp_path / TABLE


def test_vllm_downloads_in_its_front_end_only(model: Path, hub: HubServer) -> None:
    """Workers get the path, and ask nobody; a repository that is missing stops the start."""
    config = SimpleNamespace(model=str(model))
    path = find_table(NAME, config)
    assert path.is_absolute()
    assert SimilarityTable.load(path).metric == "weights"
    before = len(hub.requests)
    assert find_table(str(path), config) == path
    assert len(hub.requests) == before
    with pytest.raises(HubError, match="mill/none"):
        find_table("mill/none", config)
