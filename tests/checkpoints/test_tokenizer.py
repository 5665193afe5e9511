"""A checkpoint's tokenizer: found, missing, damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from sere.checkpoints import load_tokenizer
from sere.errors import InputError, MissingDependency, UnsupportedModel
from tests.support.checkpoints import save_checkpoint, tiny_tokenizer
from tests.support.damage import change_json
from tests.support.tiny import tiny_model


def test_the_checkpoints_own_is_loaded(tmp_path: Path) -> None:
    """It gives the ids of the tokenizer that was saved."""
    ids = load_tokenizer(save_checkpoint(tmp_path))("add 1+1")["input_ids"]
    assert ids == tiny_tokenizer()("add 1+1")["input_ids"]


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "mixtral", "deepseek_v3"])
def test_a_missing_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    """Where Transformers would make one that knows no words, too."""
    tiny_model(name).save_pretrained(tmp_path)
    with pytest.raises(
        InputError,
        match=r"tokenizer: .* has no tokenizer that can be loaded; put the files of the model's tokenizer",
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, file: str) -> None:
    """A file cut short is an error of ours that names the folder."""
    path = save_checkpoint(tmp_path)
    (path / file).write_text((path / file).read_text()[:-20])
    with pytest.raises(InputError, match=f"{path}"):
        load_tokenizer(path)


def test_a_tokenizer_whose_package_is_missing_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Transformers says of a missing package reaches the user in one error."""
    from transformers import AutoTokenizer

    def needs_package(*_: object, **__: object) -> None:
        raise ImportError("requires the SentencePiece library")

    path = save_checkpoint(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", needs_package)
    with pytest.raises(MissingDependency, match="not installed: requires the SentencePiece library"):
        load_tokenizer(path)


def test_an_engine_may_know_model_types_that_transformers_does_not(tmp_path: Path) -> None:
    """Only for one is the tokenizer loaded, from its own files; code beside the config is not run."""
    path = save_checkpoint(tmp_path)
    expected = load_tokenizer(path)("add 1+1")["input_ids"]
    change_json(path / "config.json", model_type="alien_moe", auto_map={"AutoConfig": "code.AlienConfig"})
    with pytest.raises(
        UnsupportedModel, match="'alien_moe', which Transformers does not have, is Python code"
    ):
        load_tokenizer(path)
    assert load_tokenizer(path, any_type=True)("add 1+1")["input_ids"] == expected
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="has no tokenizer that can be loaded"):
        load_tokenizer(path, any_type=True)
