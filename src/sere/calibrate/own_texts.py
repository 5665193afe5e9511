"""Let a model write its calibration texts: it continues openings, sampled from its own distribution."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.in_memory import evaluating, input_device
from sere.calibrate.packing import Tokens
from sere.calibrate.progress import progress_bar
from sere.errors import DataError, MissingDependency, SereError, UnsupportedModel
from sere.texts import OPENINGS, encode, has_template, messages_of, render

logger = logging.getLogger("sere")

# Texts that are written at a time. The tokens depend on it, as they do on the seed.
_ROWS = 128
# A prompt that is written, in tokens.
_PROMPT_TOKENS = 48
# A model that ends its texts early needs more of them: up to this many times as many.
_MOST_TIMES = 8
_GIVE = "give texts (--texts FILE, in Python texts=...)"


def write_tokens(model: nn.Module, tokenizer: Any, config: CalibrationConfig) -> Tokens:
    """Return calibration tokens that the model wrote.

    A text has at most ``seq_len`` tokens: an opening, at most half as long, and what follows at
    temperature 1, until the model ends it. A quarter of the openings is the tokenizer's start token alone
    (where there is none, the token that ends texts). The others are short texts, and if the tokenizer has a
    chat template, two thirds of these are messages of a user. The model, its settings and the random
    generators are left as they were found.

    Args:
        model: A causal language model of Transformers.
        tokenizer: Its tokenizer.
        config: The number of tokens, their seed (None is 0) and the length of texts.

    Raises:
        DataError: The tokenizer knows no opening, or the model ends every text at once.
        UnsupportedModel: The model cannot continue text.
    """
    _check_writes(model)
    with _sampling(model, config.seed or 0):
        return gather_texts(
            lambda begun: _continue(model, tokenizer, begun, config.seq_len), tokenizer, config
        )


def write_prompts(model: nn.Module, tokenizer: Any, count: int, *, seed: int = 0) -> list[str]:
    """Return different beginnings of texts that the model wrote, without its chat template.

    Each is an opening as for `write_tokens`, of at most 24 tokens, with what follows at temperature 1, and
    has at most 48 tokens. The model, its settings and the random generators are left as they were found.

    Args:
        model: A causal language model of Transformers.
        tokenizer: Its tokenizer.
        count: How many at most; a model that ends its texts at once gives fewer.
        seed: Seed of the openings' order and of the sampling.

    Raises:
        DataError: The tokenizer knows no opening.
        UnsupportedModel: The model cannot continue text.
    """
    _check_writes(model)
    openings = _openings(tokenizer, _PROMPT_TOKENS, seed, chats=False)
    found: dict[str, None] = {}
    with _sampling(model, seed):
        for _ in range(_MOST_TIMES * -(-count // _ROWS)):
            begun = [next(openings) for _ in range(min(_ROWS, count))]
            for ids in _continue(model, tokenizer, begun, _PROMPT_TOKENS):
                # The last token may be a part of a character.
                text = tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd").strip()
                found |= {text: None} if text else {}
            if len(found) >= count:
                break
    return list(found)[:count]


def _check_writes(model: nn.Module) -> None:
    if not callable(getattr(model, "generate", None)):
        raise UnsupportedModel(f"texts: {type(model).__name__} cannot continue text by itself; {_GIVE}")


def gather_texts(
    continued: Callable[[list[list[int]]], Iterable[list[int]]], tokenizer: Any, config: CalibrationConfig
) -> Tokens:
    """Return calibration tokens from openings that something continues.

    Args:
        continued: Returns openings, as token ids, each with what follows, of at most ``seq_len`` tokens.
        tokenizer: The model's tokenizer.
        config: The number of tokens, their seed (None is 0) and the length of texts.

    Raises:
        DataError: The tokenizer knows no opening, or the model ends every text at once.
    """
    openings = _openings(tokenizer, config.seq_len, config.seed or 0)
    wanted = -(-config.max_tokens // config.seq_len)
    texts: list[list[int]] = []
    lengths: list[int] = []
    total = 0
    with progress_bar(config.progress, config.max_tokens, "writing texts") as bar:
        while total < config.max_tokens and len(texts) < _MOST_TIMES * wanted:
            missing = -(-(config.max_tokens - total) // config.seq_len)
            begun = [next(openings) for _ in range(min(_ROWS, missing))]
            for opening, text in zip(begun, continued(begun), strict=True):
                texts.append(text)
                lengths.append(len(opening))
                total += len(text)
                bar.update(len(text))
    if total < config.seq_len or total < config.max_tokens / _MOST_TIMES:
        raise DataError(
            f"texts: expected {config.max_tokens} tokens of the model's own, got {total} in {len(texts)} "
            f"texts: it ends its texts at once; {_GIVE}"
        )
    starts = torch.tensor([0, *map(len, texts[:-1])], device="cpu").cumsum(0)
    ids = torch.tensor([token for text in texts for token in text][: config.max_tokens], device="cpu")
    kept = starts < len(ids)
    written = starts + torch.tensor(lengths, device="cpu")
    return Tokens(ids, config.seq_len, starts[kept], tokenizer, written[kept])


def _openings(tokenizer: Any, seq_len: int, seed: int, *, chats: bool = True) -> Iterator[list[int]]:
    """Return endless openings as token ids, in a seeded order, ``chats`` among them; see `write_tokens`.

    Raises:
        DataError: The tokenizer knows none of them.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    longest = max(1, seq_len // 2)  # at least half of each text is the model's own

    def usable(found: list[list[int]]) -> list[list[int]]:
        kept = [ids for ids in found if ids and unknown not in ids and len(ids) <= longest]
        random.Random(seed).shuffle(kept)
        return kept

    kinds = [
        usable([_start(tokenizer)]),
        usable([_without_end(encode(opening, tokenizer), tokenizer)[:longest] for opening in OPENINGS]),
        usable(_questions(tokenizer) if chats else []),
    ]
    start, texts, questions = kinds
    if not any(kinds):
        raise DataError(
            f"texts: {type(tokenizer).__name__} has no start token and knows no opening of at most "
            f"{longest} tokens; {_GIVE}"
        )
    fallback = texts or start or questions
    order = [start or fallback, texts or fallback, questions or fallback, questions or fallback]
    # Kinds that share a list take its entries in turn.
    endless = {id(kind): cycle(kind) for kind in order}
    return (next(endless[id(kind)]) for kind in cycle(order))


def _start(tokenizer: Any) -> list[int]:
    """Return what begins a text without words."""
    own = _without_end(encode("", tokenizer), tokenizer)
    if own:
        return own
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return [int(token)]
    return []


def _questions(tokenizer: Any) -> list[list[int]]:
    """Return the openings as messages of a user, with the beginning of an answer; none without a template."""
    if not has_template(tokenizer):
        return []
    try:
        return [
            encode(
                render(
                    messages_of([{"role": "user", "content": opening}], "opening"),
                    tokenizer,
                    "opening",
                    generation_prompt=True,
                ),
                tokenizer,
            )
            for opening in OPENINGS
        ]
    except (DataError, MissingDependency) as error:
        logger.warning("sere: texts: the model writes without its chat template: %s", error)
        return []


def _without_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Return ids without the end that some tokenizers put after every text."""
    end = getattr(tokenizer, "eos_token_id", None)
    return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids


@contextmanager
def _sampling(model: Any, seed: int) -> Iterator[None]:
    """Let ``generate`` sample from the model's own distribution while the block runs, from a seed."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    device = input_device(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model):
        torch.manual_seed(seed)
        # What the checkpoint recommends (top_k, penalties, ...) would be another distribution.
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=end_tokens(getattr(own, "eos_token_id", None)),
        )
        try:
            yield
        finally:
            model.generation_config = own


def _continue(model: Any, tokenizer: Any, begun: list[list[int]], seq_len: int) -> Iterator[list[int]]:
    """Yield each opening with its continuation, of at most ``seq_len`` tokens."""
    ends = end_tokens(getattr(model.generation_config, "eos_token_id", None), tokenizer)
    pad = ends[0] if ends else 0
    longest = max(map(len, begun))
    device = input_device(model)
    ids = torch.full((len(begun), longest), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, opening in enumerate(begun):
        ids[row, longest - len(opening) :] = torch.tensor(opening, device=device)
        mask[row, longest - len(opening) :] = 1
    try:
        with torch.no_grad():
            written: Tensor = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max(1, seq_len - longest),
                pad_token_id=pad, eos_token_id=ends or None,
            )  # fmt: skip
    except SereError:
        raise
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"texts: {type(model).__name__} cannot continue text by itself ({type(error).__name__}: "
            f"{error}); {_GIVE}"
        ) from error
    for opening, row in zip(begun, written[:, longest:].tolist(), strict=True):
        end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        yield [*opening, *row[:end]][:seq_len]


def end_tokens(given: Any, tokenizer: Any = None) -> list[int]:
    """Return the tokens that end a text, sorted: those of a generation config, and the tokenizer's.

    Args:
        given: The config's ``eos_token_id``: a number, a list of them, or None.
        tokenizer: The model's tokenizer, or None for the config's alone.
    """
    of_config = [] if given is None else [given] if isinstance(given, int) else list(given)
    end = getattr(tokenizer, "eos_token_id", None)
    return sorted({*map(int, of_config), *([] if end is None else [int(end)])})
