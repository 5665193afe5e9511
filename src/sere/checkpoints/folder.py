"""From the name of a model to the folder that holds it: a path, a hub name, or the bundled model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sere.bundled import BUNDLED, model_path
from sere.checkpoints.weight_files import find_weights, named_weights, read_json
from sere.defaults import TABLE, hub_name
from sere.errors import InputError, MissingDependency, how_to_install, name_some
from sere.hub.names import HUB_NAME

# The files that describe a model and its tokenizer are at the top of a repository. Copies of the weights in
# other formats have their own folders (original, onnx); the only folder that counts has chat templates.
_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_BELOW = tuple(f"*/{pattern}" for pattern in _SMALL if pattern != "*.jinja")


def find_checkpoint(
    name: str | os.PathLike[str], *, weights: bool = True, trust_remote_code: bool = False
) -> Path:
    """Return the folder of a checkpoint.

    Args:
        name: A folder, ``bundled``, or a hub name like ``owner/name``, which is looked up in the hub's cache
            and downloaded: what describes model and tokenizer, and the files that hold the weights.
        weights: Whether the weights are needed too; without, none are downloaded or asked for.
        trust_remote_code: Download Python files too.

    Raises:
        InputError: It is not a path, there is neither a folder nor a hub model of this name, or what is there
            is not a checkpoint of Transformers with all its weights.
        MissingDependency: A hub name is given, and huggingface_hub is not installed.
    """
    if not isinstance(name, str | os.PathLike):
        raise InputError(
            f"model: expected a model, a checkpoint folder or a hub name, got {type(name).__name__}; "
            "the model goes first, then the tokenizer"
        )
    if name == BUNDLED:
        return model_path()
    folder = Path(name)
    if os.fspath(name) and folder.is_dir():
        _check_format(folder)
        if weights:
            find_weights(folder)
        return folder
    _refuse_no_folder(name)
    return _from_hub(str(name), weights, trust_remote_code)


def _refuse_no_folder(name: str | os.PathLike[str]) -> None:
    """Refuse what is neither a folder nor like a hub name."""
    path = Path(name)
    if not os.fspath(name):
        raise InputError(f"model: expected a checkpoint folder, a hub name or '{BUNDLED}', got an empty name")
    if str(name).startswith("~"):
        raise InputError(f"model: {path}: does not exist; write the home folder's path instead of ~")
    if path.suffix == ".gguf":
        raise InputError(f"model: {path}: {_GGUF}")
    if path.exists():
        raise InputError(f"model: expected a checkpoint folder, got the file {path}; give its folder")
    if HUB_NAME.fullmatch(str(name)) is None:
        raise InputError(
            f"model: expected a checkpoint folder, a hub name like 'owner/name' or '{BUNDLED}', "
            f"got {str(name)!r}"
        )


_GGUF = (
    "GGUF weights are packed in a format without experts modules; give the original checkpoint "
    "in Transformers' format (config.json and safetensors)"
)


def _check_format(folder: Path) -> None:
    """Refuse a folder that is not a complete model in Transformers' format; the text says what it is."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise InputError(
            f"model: {folder} holds an adapter (adapter_config.json) of {base or 'another model'}; merge it "
            "into that model first (PEFT: merge_and_unload, then save_pretrained) and give the merged "
            "folder, or give the base model"
        )
    packed = any(folder.glob("*.gguf")) or "gguf" in (hub_name(folder) or "").lower()
    if packed and named_weights(folder) is None:
        raise InputError(f"model: {folder}: {_GGUF}")
    if (folder / "config.json").is_file():
        return
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        instead = f"found one in {name_some(inside, 5)} inside it; give one of these folders"
    elif (folder / "params.json").is_file():
        instead = "found params.json, another format; give the checkpoint in Transformers' format"
    else:
        instead = "give a folder that save_pretrained wrote"
    raise InputError(f"model: {folder} has no config.json: {instead}")


def _from_hub(name: str, weights: bool, code: bool) -> Path:
    """Download what is needed of a hub model, and no copy of its weights in another format."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(f"hub names need Transformers: {how_to_install('transformers')}") from error
    fetch = huggingface_hub.snapshot_download
    try:
        allow = [*_SMALL, TABLE, *(["*.py"] if code else [])]
        folder = Path(fetch(name, allow_patterns=allow, ignore_patterns=list(_BELOW)))
    except Exception as error:  # the hub's library raises network, name and cache errors of many kinds
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            raise _unreachable(name, error) from error
        folder = Path(cached).parent
    _check_format(folder)
    if not weights:
        return folder
    for names in _wanted(folder):
        if not _all_there(folder, names):
            try:
                # The same commit: what an index says holds for its own.
                fetch(name, allow_patterns=names, revision=folder.name)
            except Exception as error:  # as above
                raise _unreachable(name, error) from error
        if _all_there(folder, names):
            break
    find_weights(folder)
    return folder


def _all_there(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(f"model: no folder {name}, and on the hub: {' '.join(str(error).split())}")


def _wanted(folder: Path) -> list[list[str]]:
    """Return the weight files to ask the hub for, as the index in the folder says, the best first."""
    found = named_weights(folder)
    named = [] if found is None else [list(found.names)]
    if found is not None and found.safetensors:
        return named
    return [["model.safetensors"], *(named or [["pytorch_model.bin"]])]
