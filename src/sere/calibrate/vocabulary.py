"""Whether the model has embeddings for all tokens and positions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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


def check_prompts(
    prompts: Sequence[Sequence[int]], new_tokens: int, tokenizer: Any, model: nn.Module
) -> None:
    """Refuse prompts with tokens beyond the model's embedding, or longer than its learned positions.

    Args:
        prompts: Token ids of each prompt; none is empty.
        new_tokens: At most this many tokens are decoded after each prompt.
        tokenizer: The tokenizer that they come from, or None.
        model: The model.

    Raises:
        DataError: A token's id is beyond the embedding, or the model has no position for a token.
    """
    check_largest(max(map(max, prompts)), tokenizer, model)
    length = max(map(len, prompts)) + new_tokens
    most, learned = _positions(model)
    if most is None or length <= most:
        return
    text = (
        f"the longest prompt and its {new_tokens} new tokens are {length} tokens, and the model has {most} "
    )
    if learned is not None:
        raise DataError(
            f"prompts: {text}positions ({learned}); give shorter prompts, or a smaller max_new_tokens"
        )
    logger.warning("sere: %spositions that it was made for: its output beyond them may be nonsense", text)


def check_largest(largest: int, tokenizer: Any, model: Any) -> None:
    """Refuse a token beyond the model's embedding; warn of a tokenizer that is much smaller.

    Args:
        largest: The largest id of all tokens.
        tokenizer: The tokenizer that they come from, or None.
        model: The model, with or without weights, or anything with its config.

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
    length = min(tokens.seq_len, tokens.num_tokens)
    most, learned = _positions(model)
    if most is None or length <= most:
        return
    if learned is not None:
        raise ConfigError(
            f"seq_len: expected at most {most}, the positions that {learned} has, got {length}; give a "
            "smaller seq_len"
        )
    logger.warning(
        "sere: sequences of %d tokens are longer than the %d positions that the model was made for; a "
        "smaller seq_len measures what it was trained on",
        length,
        most,
    )


def _positions(model: nn.Module) -> tuple[int | None, str | None]:
    """Return how many positions a model was made for, and the name of the embedding that learned them."""
    most = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(most, int):
        return None, None
    named = model.named_modules()
    return most, next((name for name, module in named if _learns_positions(name, module, most)), None)


def _learns_positions(name: str, module: nn.Module, most: int) -> bool:
    last = name.rpartition(".")[2].lower()
    named = "pos" in last or last == "wpe"
    # Some keep a few rows in front for padding.
    return named and isinstance(module, nn.Embedding) and most <= module.num_embeddings < most + 8


def _embedding_rows(model: Any) -> int | None:
    try:
        embedding = model.get_input_embeddings()
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
