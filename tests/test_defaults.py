"""Where the table of a model is found if none is named."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from sere.defaults import OLD_TABLE, TABLE, default_table, own_table, required_table
from sere.errors import ConfigError

# What engines read in a model's folder, or fetch of a hub model, as weights, tokenizer, config or code.
PATTERNS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz", "*.h5", "*.msgpack", "*.json", "*.txt",
    "*.model", "*.tiktoken", "*.jinja", "*.py", "consolidated*", "tokenizer*", "pytorch_model*", "model*",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_engine_reads_the_table_as_its_own_file(pattern: str) -> None:
    """The default name matches no pattern of weights, tokenizers or configs."""
    assert not fnmatch(TABLE, pattern)


def test_the_new_name_comes_before_the_old_one(tmp_path: Path) -> None:
    """A folder with only an old table has that one; beside a new one it is not looked at."""
    assert default_table(tmp_path) is None
    (tmp_path / OLD_TABLE).touch()
    assert default_table(tmp_path) == tmp_path / OLD_TABLE
    (tmp_path / TABLE).touch()
    assert default_table(str(tmp_path)) == tmp_path / TABLE


def test_a_folder_of_that_name_is_no_table(tmp_path: Path) -> None:
    """Only a file counts."""
    (tmp_path / TABLE).mkdir()
    assert default_table(tmp_path) is None


@pytest.mark.parametrize("name", ["", None])
def test_a_model_made_in_memory_has_no_table(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a model has an empty name, which is not the current folder."""
    (tmp_path / TABLE).touch()
    monkeypatch.chdir(tmp_path)
    assert default_table(name) is None


@pytest.mark.parametrize("name", ["mill/moe", "moe"])
def test_a_hub_model_has_the_table_of_its_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model named as on the hub, the local cache is searched, in the revision that is asked for."""
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    for revision, commit in (("main", "a" * 40), ("older", "b" * 40)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / ("b" * 40) / TABLE).touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert default_table(name) is None
    assert default_table(name, "older") == repository / "snapshots" / ("b" * 40) / TABLE


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "what is this?"])
def test_what_names_no_model_has_no_table(name: str) -> None:
    """A path that is not there, or a name that no hub would take, is no error here."""
    assert default_table(name) is None


@pytest.mark.parametrize(
    "name",
    ["mill/moe", "no/folder/moe", "cache/models--mill--moe/snapshots/0123abcd"],
    ids=["hub", "path", "cache"],
)
def test_the_current_folder_comes_last(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the model's name, also if an engine got the folder in the hub's cache instead of the name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert default_table(name) is None
    (tmp_path / "moe.sere").touch()
    assert default_table(name) == tmp_path / "moe.sere"
    assert own_table(name) is None
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / TABLE).touch()
    assert default_table(name) == tmp_path / name / TABLE


@pytest.mark.parametrize(
    ("name", "looked"),
    [
        ("", "in the model's folder (unknown: made in memory), nor NAME.sere in the current one"),
        ("mill/moe", "in the model's folder (mill/moe), nor moe.sere in the current one"),
    ],
)
def test_where_a_needed_table_was_looked_for(
    name: str, looked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names both places and who needs it; a table in the second is found."""
    monkeypatch.chdir(tmp_path)
    text = f"table: tuning needs a similarity table, none was given, and there is no {TABLE} {looked}"
    with pytest.raises(ConfigError, match=re.escape(text)):
        required_table("tuning", name)
    (tmp_path / "moe.sere").touch()
    if name:
        assert required_table("tuning", name) == tmp_path / "moe.sere"
