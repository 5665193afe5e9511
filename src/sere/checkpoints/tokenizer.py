"""A checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sere.checkpoints.config import load_config, missing_package, refusal_of_code
from sere.checkpoints.quiet import errors_only
from sere.checkpoints.weight_files import read_json
from sere.errors import InputError, UnsupportedModel

# What every tokenizer of text turns into at least one token.
_PROBE = "The answer is 42."


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False, any_type: bool = False) -> Any:
    """Load a checkpoint's tokenizer.

    Args:
        folder: The checkpoint folder.
        trust_remote_code: Use the tokenizer's own Python code, if the folder names some.
        any_type: Also for a model type that Transformers does not know, as an engine may: by the tokenizer's
            own files.

    Raises:
        InputError: There is no tokenizer, or it is damaged.
        UnsupportedModel: It is Python code, which is not to be run; or Transformers does not know
            the model type.
        MissingDependency: It needs a package that is not installed.
    """
    from transformers import AutoTokenizer

    config = _config(folder, trust_remote_code, any_type)
    described = folder / "tokenizer_config.json"
    code = read_json(described).get("auto_map") if described.is_file() else None
    try:
        with errors_only():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=trust_remote_code and bool(code)
            )
            tokens = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    except ImportError as error:
        raise missing_package("tokenizer", folder, error) from error
    except Exception as error:  # tokenizers fail in as many ways as there are formats
        if code and not trust_remote_code:
            raise refusal_of_code(folder, "its tokenizer", code) from error
        raise _none(folder, f"Transformers says: {' '.join(str(error).split())}") from error
    if not tokens and code and not trust_remote_code:
        raise refusal_of_code(folder, "its tokenizer", code)
    if not tokens:
        # Transformers makes an empty tokenizer where the files of a known kind are missing.
        raise _none(folder, f"without its files, {type(tokenizer).__name__} has an empty vocabulary")
    return tokenizer


def _config(folder: Path, trusted: bool, any_type: bool) -> Any:
    """Return the model's config; of an unknown type, what a tokenizer asks of it."""
    try:
        return load_config(folder, trust_remote_code=trusted)
    except UnsupportedModel:
        if not any_type:
            raise
    from transformers import PreTrainedConfig

    described = read_json(folder / "config.json")
    found = {name: described.get(name) for name in ("model_type", "tokenizer_class")}
    return PreTrainedConfig(**{name: value for name, value in found.items() if isinstance(value, str)})


def _none(folder: Path, reason: str) -> InputError:
    return InputError(
        f"tokenizer: {folder} has no tokenizer that can be loaded; put the files of the model's tokenizer "
        f"there, e.g. tokenizer.json and tokenizer_config.json ({reason})"
    )
