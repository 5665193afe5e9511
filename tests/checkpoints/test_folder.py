"""From a name to a checkpoint's folder: what is fetched from a hub, what counts, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from sere.calibrate import memory
from sere.checkpoints import find_checkpoint, find_weights
from sere.checkpoints.weight_files import read_json
from sere.errors import InputError, MissingDependency, SereError
from tests.support.hub import COMMIT, Hub
from tests.support.tiny import tiny_model


def files(folder: Path, *names: str) -> Path:
    """Make files with their own names in them, and a config."""
    for name in ("config.json", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else name)
    return folder


def index(folder: Path, name: str, *shards: str) -> None:
    """Write an index that names one tensor in each shard."""
    weight_map = {f"weight.{i}": shard for i, shard in enumerate(shards)}
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SMALL = ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "vocab.txt",
         "qwen.tiktoken", "tokenizer.model", "merges.txt", "generation_config.json")  # fmt: skip
COPIES = ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/params.json",
          "original/consolidated.00.pth", "original/tokenizer.model", "onnx/model.onnx", "onnx/config.json",
          "model.gguf", "training_args.bin", "README.md", "modeling_mill.py")  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path, monkeypatch)


def test_only_what_the_index_names_and_what_describes_model_and_tokenizer_is_fetched(hub: Hub) -> None:
    """No copy of the weights in another format, no code; templates and vocabularies of all kinds."""
    files(hub.repository, *SMALL, *SHARDS, "pytorch_model.bin", *COPIES)
    index(hub.repository, "model.safetensors.index.json", *SHARDS)
    assert find_checkpoint("mill/moe") == hub.cached
    assert hub.fetched == sorted(["config.json", "model.safetensors.index.json", *SMALL, *SHARDS])
    assert hub.revisions == [None, COMMIT]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
    ],
)
def test_without_an_index_the_single_file_is_fetched(hub: Hub, weights: list[str], wanted: list[str]) -> None:
    """Safetensors come before PyTorch's files, as Transformers would read them."""
    files(hub.repository, *weights, *COPIES)
    assert find_weights(find_checkpoint("mill/moe")).names == tuple(wanted)
    assert hub.fetched == sorted(["config.json", *wanted])


def test_a_safetensors_file_comes_before_an_index_of_bin_files(hub: Hub) -> None:
    """A repository with both is read from the safetensors file; without it from the files of the index."""
    files(hub.repository, "model.safetensors", "a.bin", "b.bin")
    index(hub.repository, "pytorch_model.bin.index.json", "a.bin", "b.bin")
    find_checkpoint("mill/moe")
    assert hub.fetched == ["config.json", "model.safetensors", "pytorch_model.bin.index.json"]
    (hub.repository / "model.safetensors").unlink()
    (hub.cached / "model.safetensors").unlink()
    assert find_weights(find_checkpoint("mill/moe")).names == ("a.bin", "b.bin")


def test_for_the_config_alone_no_weight_is_fetched(hub: Hub) -> None:
    """What doctor and verify need is small."""
    files(hub.repository, *SHARDS, "tokenizer.json", "modeling_mill.py")
    index(hub.repository, "model.safetensors.index.json", *SHARDS)
    find_checkpoint("mill/moe", weights=False)
    assert hub.fetched == ["config.json", "model.safetensors.index.json", "tokenizer.json"]


def test_code_is_fetched_only_where_it_may_be_run(hub: Hub) -> None:
    """Python files come with ``trust_remote_code`` alone."""
    files(hub.repository, "model.safetensors", "modeling_mill.py")
    find_checkpoint("mill/moe", trust_remote_code=True)
    assert hub.fetched == ["config.json", "model.safetensors", "modeling_mill.py"]


def test_a_hub_model_without_weights_or_with_some_missing_is_refused(hub: Hub) -> None:
    """The error says which files were looked for, or which are missing."""
    files(hub.repository)
    with pytest.raises(InputError, match=r"holds no weights; expected model\.safetensors"):
        find_checkpoint("mill/moe")
    index(hub.repository, "model.safetensors.index.json", *SHARDS)
    (hub.repository / SHARDS[0]).touch()
    with pytest.raises(InputError, match=rf"1 of 2 weight files are missing: {SHARDS[1]}"):
        find_checkpoint("mill/moe")


def test_a_name_that_the_hub_does_not_know_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is any hub name without the hub's library."""
    with pytest.raises(InputError, match="no folder mill/other, and on the hub: 404"):
        find_checkpoint("mill/other")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[transformers\]'"):
        find_checkpoint("mill/moe")


def test_the_cache_of_the_hub_is_enough_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in the cache is found by its name while offline."""
    repository = tmp_path / "models--mill--moe"
    files(repository / "snapshots" / COMMIT, "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint("mill/moe") == repository / "snapshots" / COMMIT
    (repository / "snapshots" / COMMIT / "model.safetensors").unlink()
    assert find_checkpoint("mill/moe", weights=False) == repository / "snapshots" / COMMIT
    with pytest.raises(InputError, match=r"holds no weights|on the hub: .*offline"):
        find_checkpoint("mill/moe")


def test_what_the_cache_holds_is_used_while_the_hub_does_not_answer(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete model in the cache needs no hub; where weights are missing, the hub's answer is given."""
    files(hub.repository, "model.safetensors")
    find_checkpoint("mill/moe")

    def no_answer(*_: object, **__: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_answer)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: str(hub.cached / name))
    assert find_checkpoint("mill/moe") == hub.cached
    (hub.cached / "model.safetensors").unlink()
    with pytest.raises(InputError, match="on the hub: no answer"):
        find_checkpoint("mill/moe")


@pytest.mark.parametrize(("free", "fits"), [(1, True), (0, False)], ids=["beside", "none"])
def test_only_weights_that_are_read_count_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    """Copies in other formats beside the weights do not make a model look larger."""
    path = files(tmp_path, *SHARDS)
    index(path, "model.safetensors.index.json", *SHARDS)
    size = sum(len(name) for name in SHARDS)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/model.safetensors"):
        files(path, name)
        (path / name).write_bytes(bytes(10 * size))
    assert find_weights(path).num_bytes == size
    available = SimpleNamespace(available=memory.LEAST_ROOM + free * size)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(virtual_memory=lambda: available))
    assert memory.fits_memory(path) is fits


def test_weights_are_found_in_transformers_order(tmp_path: Path) -> None:
    """What the config names comes first, then one safetensors file, its index, and PyTorch's."""
    path = files(tmp_path, "pytorch_model.bin", "own.safetensors", *SHARDS)
    assert find_weights(path).names == ("pytorch_model.bin",)
    index(path, "model.safetensors.index.json", *SHARDS)
    assert find_weights(path).names == SHARDS
    files(path, "model.safetensors")
    assert find_weights(path).names == ("model.safetensors",)
    (path / "config.json").write_text('{"transformers_weights": "own.safetensors"}')
    assert find_weights(path).names == ("own.safetensors",)
    (path / "config.json").write_text('{"transformers_weights": "../own.safetensors"}')
    with pytest.raises(InputError, match=r"transformers_weights: expected a file's name, got '\.\./own"):
        find_weights(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    """Not JSON, or without file names by tensor name."""
    files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(
        InputError, match=r"model\.safetensors\.index\.json.*copy the checkpoint again|JSON object"
    ):
        find_checkpoint(tmp_path)


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    """A repository that was cloned without its large files says how to get them."""
    files(tmp_path, "model.safetensors")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"pointers of Git LFS.*model\.safetensors; run 'git lfs pull'"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["adapter_model.safetensors"], "has no config.json: give a folder that save_pretrained wrote"),
        (["model-Q4_K_M.gguf"], "GGUF weights are packed"),
        (
            ["params.json", "consolidated.safetensors"],
            "has no config.json: found params.json, another format",
        ),
        (["checkpoint-9/config.json"], "found one in checkpoint-9 inside it; give one of these"),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_what_it_is(tmp_path: Path, names: list[str], text: str) -> None:
    """Other formats and folders around checkpoints are told apart."""
    files(tmp_path, *names)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=text):
        find_checkpoint(tmp_path)


def test_weights_under_other_names_are_mentioned(tmp_path: Path) -> None:
    """Files whose index is missing, or of another format: the error says what was found."""
    files(tmp_path, *SHARDS)
    with pytest.raises(InputError, match=rf"holds no weights; .* found {SHARDS[0]}, {SHARDS[1]}$"):
        find_checkpoint(tmp_path)


def test_a_file_that_must_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says reaches the user."""

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = files(tmp_path) / "config.json"
    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(InputError, match=r"config\.json cannot be read: Permission denied"):
        read_json(path)


@pytest.mark.parametrize("with_model", [False, True])
def test_an_adapter_is_to_be_merged_first(tmp_path: Path, with_model: bool) -> None:
    """Beside a model or alone, an adapter is neither left out nor fetched a base model for."""
    files(tmp_path, "model.safetensors", "adapter_model.safetensors")
    if not with_model:
        (tmp_path / "config.json").unlink()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "mill/moe"}')
    with pytest.raises(InputError, match=r"holds an adapter .* of mill/moe; merge it into that model first"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.gguf", "GGUF weights are packed"),
        ("DIR/model.safetensors", "got the file .*model.safetensors; give its folder"),
        (
            "./nowhere",
            "expected a checkpoint folder, a hub name like 'owner/name' or 'bundled', got './nowhere'",
        ),
        ("/no/where", "expected a checkpoint folder, a hub name"),
        ("", "got an empty name"),
        ("~/models/x", "write the home folder's path instead of ~"),
        ("owner/", "expected a checkpoint folder, a hub name"),
        ("a/b/c", "expected a checkpoint folder, a hub name"),
        ("name", "expected a checkpoint folder, a hub name"),
        (3, "expected a model, a checkpoint folder or a hub name, got int"),
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused(tmp_path: Path, name: Any, text: str) -> None:
    """Files, paths to nowhere and other things, each by name."""
    files(tmp_path, "model.safetensors")
    given = str(name).replace("DIR", str(tmp_path)) if isinstance(name, str) else name
    with pytest.raises(SereError, match=text):
        find_checkpoint(given)


def test_bundled_is_the_model_of_the_package() -> None:
    """The word stands for it wherever a model is named."""
    assert (find_checkpoint("bundled") / "model.safetensors").is_file()


def test_a_folder_with_weights_is_returned_as_it_is(tmp_path: Path) -> None:
    """Nothing is fetched for it; without need of weights, none are asked for."""
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    assert find_checkpoint(tmp_path) == tmp_path
    (tmp_path / "model.safetensors").unlink()
    assert find_checkpoint(tmp_path, weights=False) == tmp_path
    with pytest.raises(InputError, match="holds no weights"):
        find_checkpoint(tmp_path)
