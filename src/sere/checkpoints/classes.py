"""Which class of Transformers loads a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sere.errors import UnsupportedModel, name_some

# Auto classes whose models continue a text, the plainest first.
_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM",
)


def choose_class(config: Any) -> tuple[Any, Any]:
    """Return the class that a checkpoint is to be loaded as, and the config that this class takes.

    That is the class which ``architectures`` names, if Transformers has it, it generates and it fits the
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
    named = name_some(config.architectures or ()) or "none"
    raise UnsupportedModel(
        f"model: Transformers {transformers.__version__} has no class that generates text for model type "
        f"{config.model_type!r} (architectures: {named}); expected a causal language model, or a model that "
        "contains one"
    )


def is_auto(kind: Any) -> bool:
    """Whether a class is one of Transformers' Auto classes, which `choose_class` returns for foreign code."""
    return hasattr(kind, "_model_mapping")


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

    # If a package is missing, Transformers has a dummy class that raises when it is used.
    if not isinstance(found, type) or getattr(found, "is_dummy", False):
        return False
    generates: Any = issubclass(found, PreTrainedModel) and getattr(found, "can_generate", None)
    return bool(generates and generates())


def _config_for(found: Any, config: Any) -> Any:
    """Return the config that a class takes: the config or its text config; None if neither fits."""
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
        f"{', '.join(_AUTO)} in the auto_map of config.json, got {name_some(auto_map) or 'none'}"
    )
