"""Whether tokens and sequences are ones that the model has embeddings for."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from sere.calibrate.packing import Tokens
from sere.errors import ConfigError, DataError
from sere.structure import text_config

logger = logging.getLogger("sere")

# A tokenizer this much smaller than the embedding is more likely another model's than one with reserve.
_FEW = 0.5


def check_tokens(tokens: Tokens, model: nn.Module) -> None:
    """Refuse tokens beyond the model's embedding and sequences beyond its learned positions.

    Args:
        tokens: The calibration tokens.
        model: The model, with or without weights.

    Raises:
        DataError: A token's id is beyond the embedding; the text names token, id and both sizes.
        ConfigError: Sequences are longer than the model has positions.
    """
    check_largest(int(tokens.ids.max()), tokens.tokenizer, model)
    _check_positions(tokens, model)


def check_largest(largest: int, tokenizer: Any, model: nn.Module) -> None:
    """Refuse a token beyond the model's embedding; warn of a tokenizer that is much smaller.

    Args:
        largest: The largest id of all tokens.
        tokenizer: The one that they are from, or None.
        model: The model, with or without weights.

    Raises:
        DataError: The id is beyond the embedding; the text names token, id and both sizes.
    """
    rows = _embedding_rows(model)
    size = _tokenizer_size(tokenizer)
    if rows is not None and largest >= rows:
        has = "" if size is None else f" (the tokenizer has {size} tokens)"
        raise DataError(
            f"tokenizer: token {_name(tokenizer, largest)} has the id {largest}, but the model's "
            f"embedding has {rows} rows, ids 0 to {rows - 1}{has}; give the model's own "
            "tokenizer, or resize the model's embedding"
        )
    if rows is not None and size is not None and size < _FEW * rows:
        logger.warning(
            "sere: the tokenizer has %d tokens, the model's embedding %d rows: is it this model's tokenizer?",
            size,
            rows,
        )


def _check_positions(tokens: Tokens, model: nn.Module) -> None:
    """Refuse sequences for which learned position embeddings have no rows."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    length = min(tokens.seq_len, tokens.num_tokens)
    if not isinstance(most, int) or length <= most:
        return
    learned = [name for name, module in model.named_modules() if _learns_positions(name, module, most)]
    if learned:
        raise ConfigError(
            f"seq_len: expected at most {most}, the positions that {learned[0]} has, got {length}; give a "
            "smaller seq_len"
        )
    logger.warning(
        "sere: sequences of %d tokens are longer than the %d positions that the model was made for; a "
        "smaller seq_len measures what it was trained on",
        length,
        most,
    )


def _learns_positions(name: str, module: nn.Module, most: int) -> bool:
    last = name.rpartition(".")[2].lower()
    named = "pos" in last or last == "wpe"
    # Some keep a few rows in front for padding.
    return named and isinstance(module, nn.Embedding) and most <= module.num_embeddings < most + 8


def _embedding_rows(model: nn.Module) -> int | None:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    for found in (
        getattr(embedding, "num_embeddings", None),
        getattr(text_config(model), "vocab_size", None),
    ):
        if isinstance(found, int):
            return found
    return None


def _tokenizer_size(tokenizer: Any) -> int | None:
    try:
        return len(tokenizer)
    except TypeError:
        return None


def _name(tokenizer: Any, token: int) -> str:
    """Return the text of a token, quoted, or a question mark where the tokenizer does not tell."""
    try:
        return repr(tokenizer.convert_ids_to_tokens(token))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return "?"
