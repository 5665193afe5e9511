"""A checkpoint's config, by a class of Transformers' own wherever there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sere.checkpoints.weight_files import read_json
from sere.defaults import hub_name
from sere.errors import InputError, MissingDependency, UnsupportedModel, how_to_install, name_some

_TRUST = "read it, and if you trust it, give --trust-remote-code (in Python: trust_remote_code=True)"


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return a checkpoint's config.

    If Transformers knows the model type, its own class is used, whatever code is in the folder.

    Args:
        folder: The checkpoint folder.
        trust_remote_code: Run the folder's own Python code where Transformers does not know the model type.

    Raises:
        InputError: ``config.json`` is damaged or does not describe a model.
        UnsupportedModel: Transformers does not know the model type; the text says whether the folder brings
            code of its own.
        MissingDependency: Transformers is not installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingDependency(
            f"reading checkpoints needs Transformers: {how_to_install('transformers')}"
        ) from error
    described = read_json(folder / "config.json")
    native = is_native(described)
    if not native:
        _refuse_unknown(folder, described, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code and not native)
    except ImportError as error:
        raise missing_package("model", folder, error) from error
    except Exception as error:  # what a config may hold is checked in a dozen ways, or not at all
        kind = described.get("model_type")
        raise InputError(
            f"model: {folder / 'config.json'} does not describe a {kind} model: {error}"
        ) from error
    config._name_or_path = hub_name(folder) or str(folder)
    return config


def is_native(described: dict[str, Any]) -> bool:
    """Whether Transformers has a config class for the model type in a ``config.json``."""
    from transformers import CONFIG_MAPPING

    kind = described.get("model_type")
    # A class that foreign code has registered under this name does not count.
    return kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].__module__.startswith("transformers.models.")


def missing_package(what: str, folder: Path, error: ImportError) -> MissingDependency:
    """Return the error for ``what`` of a folder that needs a package, which ``error`` names."""
    return MissingDependency(f"{what}: {folder} needs a package that is not installed: {error}")


def refusal_of_code(folder: Path, what: str, auto_map: Any) -> UnsupportedModel:
    """Return the error that says that foreign code is needed and not run.

    Args:
        folder: The checkpoint folder.
        what: What the code is for, e.g. "its tokenizer".
        auto_map: Where a config names the classes, such as ``module.Class`` or ``owner/name--module.Class``;
            single names, lists of them or None by the name of an Auto class.
    """
    named = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    flat = (one for entry in named for one in (entry if isinstance(entry, list | tuple) else [entry]))
    files = {_file_of(one) for one in flat if isinstance(one, str)}
    return UnsupportedModel(
        f"model: {folder}: {what} is Python code ({name_some(sorted(files))}), which is not run; {_TRUST}"
    )


def _file_of(reference: str) -> str:
    repository, _, name = reference.rpartition("--")
    return f"{name.rpartition('.')[0]}.py" + (f" of {repository}" if repository else "")


def _refuse_unknown(folder: Path, described: dict[str, Any], trusted: bool) -> None:
    import transformers

    kind = described.get("model_type")
    brings_code = "AutoConfig" in (described.get("auto_map") or {})
    if brings_code and trusted:
        return
    if brings_code:
        raise refusal_of_code(
            folder, f"its model type {kind!r}, which Transformers does not have,", described["auto_map"]
        )
    if kind is None:
        raise InputError(
            f"model: {folder / 'config.json'}: expected a model_type, as in the config of a Transformers "
            "model, found none"
        )
    raise UnsupportedModel(
        f"model: {folder}: Transformers {transformers.__version__} does not know the model type {kind!r}; "
        "a newer release may: pip install -U transformers"
    )
