"""Documents to token sequences of one length, with the end-of-text token between documents."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sere.errors import ConfigError, DataError
from sere.texts import ChatText

logger = logging.getLogger("sere")

_Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
# Above this share of unknown tokens the tokenizer hardly knows the texts.
_MANY_UNKNOWN = 0.5
# A long document is tokenized piece by piece, so that no more is tokenized than is used.
_PIECE = 65_536


@dataclass(frozen=True, eq=False)
class Tokens:
    """The calibration tokens: one stream, cut into sequences.

    There is no padding: the last sequence may be shorter and then goes through the model on its own, so every
    row that a layer sees is a token of the data.

    Attributes:
        ids: ``[num_tokens]``, int64.
        seq_len: Tokens per sequence; the last may be shorter.
        documents: Where documents start, ``[documents]``, int64; empty if that is not known.
        written: Where the model's own words start in each document, ``[documents]``, int64; empty if it wrote
            none.
        tokenizer: The tokenizer that made them, for error texts, or None.
        own: Whether the model wrote them.
        rows: Rows of the texts that were read; 0 if that is not known.
        skipped: Of them, rows that hold no text.
    """

    ids: Tensor
    seq_len: int
    documents: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    tokenizer: Any = field(default=None, repr=False)
    written: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    rows: int = 0
    skipped: int = 0

    @property
    def own(self) -> bool:
        """Whether the model wrote them."""
        return len(self.written) > 0

    @property
    def num_tokens(self) -> int:
        """Total number of tokens in all sequences."""
        return int(self.ids.numel())

    @property
    def digest(self) -> str:
        """sha256 of the packed ids (little-endian int64) as hex: the same data, the same digest."""
        return hashlib.sha256(self.ids.numpy().astype("<i8").tobytes()).hexdigest()

    def batches(self, batch_size: int, done: int = 0) -> Iterator[Tensor]:
        """Yield ``[B, S]`` ids in stream order, S = ``seq_len``; last ``[1, S']`` for a shorter sequence.

        Args:
            batch_size: Sequences of a batch.
            done: Tokens of earlier batches, which are left out.
        """
        full = self.num_tokens // self.seq_len * self.seq_len
        sequences = self.ids[:full].reshape(-1, self.seq_len)[done // self.seq_len :]
        if len(sequences):
            yield from torch.split(sequences, batch_size)
        if max(full, done) < self.num_tokens:
            yield self.ids[full:].unsqueeze(0)


def pack(documents: Iterable[str], tokenizer: Any, *, max_tokens: int, seq_len: int) -> Tokens:
    """Tokenize documents until there are enough tokens, and pack them.

    Args:
        documents: Texts; read no further than needed.
        tokenizer: A Transformers tokenizer: its own special tokens open a document (not a `ChatText`, whose
            template wrote them); its end-of-text token, if it has one, closes it.
        max_tokens: At most this many tokens.
        seq_len: Tokens per sequence.

    Returns:
        The tokens; fewer than ``max_tokens`` if the documents hold no more.

    Raises:
        DataError: Fewer tokens than one sequence needs (the text gives both numbers), or only unknown
            tokens.
        ConfigError: The tokenizer does not return token ids.
    """
    blocks: list[_Ids] = []
    starts: list[int] = []
    total = used = 0
    for document in documents:
        used += 1
        start = total
        for block in _tokenize(document, tokenizer):
            blocks.append(block)
            total += len(block)
            if total >= max_tokens:
                break
        if total > start:
            starts.append(start)
        if total >= max_tokens:
            break
    if total < seq_len:
        hint = "give more text or a smaller seq_len" if total else "is it the model's tokenizer?"
        raise DataError(
            f"texts: expected at least {seq_len} tokens (one sequence), got {total} from {used} documents; "
            f"{hint}"
        )
    ids = np.concatenate(blocks)[:max_tokens]
    _check_known(ids, tokenizer)
    return Tokens(torch.from_numpy(ids), seq_len, torch.tensor(starts, device="cpu"), tokenizer)


def _tokenize(document: str, tokenizer: Any) -> Iterator[_Ids]:
    eos = getattr(tokenizer, "eos_token_id", None)
    last: int | None = None
    chat = isinstance(document, ChatText)
    # A conversation is not cut: its special tokens are written out in it.
    size = max(1, len(document)) if chat else _PIECE
    for start in range(0, len(document), size):
        piece = str(document[start : start + size])
        opens = start == 0 and not chat
        ids = _ids(tokenizer, piece, add_special_tokens=opens)
        if len(ids):
            last = int(ids[-1])
            yield ids
    # A document without tokens does not count: end-of-text tokens alone are not data.
    if last is not None and eos is not None and last != eos:
        yield np.asarray([eos], dtype=np.int64)


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool) -> _Ids:
    """Return a text's token ids; refuse anything but a list of them."""
    try:
        ids = np.asarray(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
    except (TypeError, KeyError, IndexError) as error:
        raise ConfigError(
            f"tokenizer: expected one that returns input_ids for a text, as AutoTokenizer gives it, but "
            f"{type(tokenizer).__name__} failed ({type(error).__name__}: {error})"
        ) from error
    if ids.ndim != 1 or (len(ids) and (ids.dtype.kind not in "iu" or int(ids.min()) < 0)):
        found = (
            ids[ids < 0][0] if ids.ndim == 1 and ids.dtype.kind == "i" else f"{ids.dtype} {list(ids.shape)}"
        )
        raise ConfigError(
            f"tokenizer: expected token ids from 0 on in one list for a text, got {found} from "
            f"{type(tokenizer).__name__}; give the model's own tokenizer"
        )
    return ids.astype(np.int64)


def _check_known(ids: _Ids, tokenizer: Any) -> None:
    """Refuse tokens that are all unknown; warn if most are."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return
    # Other special tokens are put around documents whether or not the tokenizer knows their words.
    others = [i for i in getattr(tokenizer, "all_special_ids", None) or () if i != unknown]
    words = ids[~np.isin(ids, others)]
    share = float((words == unknown).mean()) if len(words) else 0.0
    if share == 1 and len(words):
        raise DataError(
            "tokenizer: every token of the texts is unknown to it; give the model's own tokenizer, or texts "
            "in its language"
        )
    if share > _MANY_UNKNOWN:
        logger.warning(
            "sere: %.0f %% of the calibration tokens are unknown to the tokenizer: is it this model's?",
            100 * share,
        )
