"""A checkpoint's config, and which class of Transformers it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sere.checkpoints.folder import hub_name
from sere.checkpoints.weight_files import read_json
from sere.errors import InputError, MissingDependency, UnsupportedModel

_TRUST = "read it, and if you trust it, give --trust-remote-code (in Python: trust_remote_code=True)"
# Auto classes whose models continue a text, the plainest first.
_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM",
)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return a checkpoint's config.

    Where Transformers knows the model type, its own class is used, whatever code lies in the folder.

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
            "reading checkpoints needs transformers: pip install 'sere[transformers]'"
        ) from error
    described = read_json(folder / "config.json")
    native = is_native(described)
    if not native:
        _refuse_unknown(folder, described, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code and not native)
    except ImportError as error:
        raise MissingDependency(f"model: {folder} needs a package that is not installed: {error}") from error
    except Exception as error:  # what a config may hold is checked in a dozen ways, or not at all
        kind = described.get("model_type")
        raise InputError(
            f"model: {folder / 'config.json'} does not describe a {kind} model: {error}"
        ) from error
    config._name_or_path = hub_name(folder) or str(folder)
    return config


def is_native(described: dict[str, Any]) -> bool:
    """Whether Transformers has a config class of its own for what a ``config.json`` holds."""
    from transformers import CONFIG_MAPPING

    kind = described.get("model_type")
    # A class that foreign code has registered under this name does not count.
    return kind in CONFIG_MAPPING and CONFIG_MAPPING[kind].__module__.startswith("transformers.models.")


def choose_class(config: Any) -> tuple[Any, Any]:
    """Return the class that a checkpoint is to be loaded as, and the config that this class takes.

    That is the class which ``architectures`` names, if Transformers has it, it generates and it goes with the
    config; else the one that Transformers has for the config's model type, causal models before those that
    take images too. For code that comes with a checkpoint, it is the Auto class that the code is meant for.

    Args:
        config: The checkpoint's config.

    Returns:
        The class, and the config or the text config within it.

    Raises:
        UnsupportedModel: There is no such class.
    """
    import transformers

    if not type(config).__module__.startswith("transformers.models."):
        return _class_of_code(config), config
    for found in _candidates(config):
        if _generates(found) and (own := _config_for(found, config)) is not None:
            return found, own
    named = ", ".join(config.architectures or ()) or "none"
    raise UnsupportedModel(
        f"model: Transformers {transformers.__version__} has no class that generates text for model type "
        f"{config.model_type!r} (architectures: {named}); expected a causal language model, or a model that "
        "contains one"
    )


def is_auto(kind: Any) -> bool:
    """Whether a class is one of Transformers' Auto classes, which `choose_class` returns for foreign code."""
    return hasattr(kind, "_model_mapping")


def refusal_of_code(folder: Path, what: str) -> UnsupportedModel:
    """Return the error that says that foreign code is needed and not run.

    Args:
        folder: The checkpoint folder.
        what: What the code is for, e.g. "its tokenizer".
    """
    files = ", ".join(sorted(path.name for path in folder.glob("*.py"))) or "another repository"
    return UnsupportedModel(f"model: {folder}: {what} is Python code ({files}), which is not run; {_TRUST}")


def _refuse_unknown(folder: Path, described: dict[str, Any], trusted: bool) -> None:
    import transformers

    kind = described.get("model_type")
    brings_code = "AutoConfig" in (described.get("auto_map") or {})
    if brings_code and trusted:
        return
    if brings_code:
        raise refusal_of_code(folder, f"its model type {kind!r}, which Transformers does not have,")
    if kind is None:
        raise InputError(
            f"model: {folder / 'config.json'}: expected a model_type, as in the config of a Transformers "
            "model, found none"
        )
    raise UnsupportedModel(
        f"model: {folder}: Transformers {transformers.__version__} does not know the model type {kind!r}; "
        "a newer release may: pip install -U transformers"
    )


def _candidates(config: Any) -> Iterator[Any]:
    import transformers

    for name in config.architectures or ():
        yield getattr(transformers, str(name), None)
    for name in _AUTO:
        mapping = getattr(getattr(transformers, name, None), "_model_mapping", None)
        if mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            yield from found if isinstance(found, tuple) else (found,)


def _generates(found: Any) -> bool:
    from transformers import PreTrainedModel

    # Where a package is missing, Transformers has a stand-in that raises when it is used.
    if not isinstance(found, type) or getattr(found, "is_dummy", False):
        return False
    generates: Any = issubclass(found, PreTrainedModel) and getattr(found, "can_generate", None)
    return bool(generates and generates())


def _config_for(found: Any, config: Any) -> Any:
    """Return the config that a class takes: the whole or its text config; None where neither fits."""
    if found.config_class is None or isinstance(config, found.config_class):
        return config
    text = config.get_text_config()
    if not isinstance(text, found.config_class):
        return None
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    text._name_or_path = config._name_or_path
    return text


def _class_of_code(config: Any) -> Any:
    import transformers

    auto_map = getattr(config, "auto_map", None) or {}
    for name in (*_AUTO, "AutoModel"):
        if name in auto_map:
            return getattr(transformers, name)
    raise UnsupportedModel(
        f"model: {config._name_or_path}: its code has no class that generates text; expected one of "
        f"{', '.join(_AUTO)} in the auto_map of config.json, got {', '.join(auto_map) or 'none'}"
    )
