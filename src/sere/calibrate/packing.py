"""Documents to token sequences of one length, with the end-of-text token between documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sere.errors import DataError
from sere.texts import ChatText

# A long document is tokenised piece by piece, so that no more is tokenised than is used.
_PIECE = 65_536


@dataclass(frozen=True, eq=False)
class Tokens:
    """The calibration tokens: one stream, cut into sequences.

    There is no padding: where the stream does not divide, the last sequence is shorter and goes
    through the model on its own, so every row that any layer sees is a token of the data.

    Attributes:
        ids: ``[num_tokens]``, int64.
        seq_len: Tokens per sequence; the last may be shorter.
    """

    ids: Tensor
    seq_len: int

    @property
    def num_tokens(self) -> int:
        """Tokens in all sequences together."""
        return int(self.ids.numel())

    @property
    def digest(self) -> str:
        """sha256 of the packed ids (little-endian int64) as hex: the same data, the same digest."""
        return hashlib.sha256(self.ids.numpy().astype("<i8").tobytes()).hexdigest()

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield ``[B, S]`` ids in stream order, S = ``seq_len``; last ``[1, S']`` for a shorter sequence."""
        full = self.num_tokens // self.seq_len * self.seq_len
        sequences = self.ids[:full].reshape(-1, self.seq_len)
        yield from torch.split(sequences, batch_size)
        if full < self.num_tokens:
            yield self.ids[full:].unsqueeze(0)


def pack(documents: Iterable[str], tokenizer: Any, *, max_tokens: int, seq_len: int) -> Tokens:
    """Tokenise documents until there are enough tokens, and pack them.

    Args:
        documents: Texts; read no further than needed.
        tokenizer: A Transformers tokenizer: its own special tokens open a document (not a `ChatText`: its
            template has put them there), its end-of-text token (where it has one) closes it.
        max_tokens: At most this many tokens.
        seq_len: Tokens per sequence.

    Returns:
        The tokens; fewer than ``max_tokens`` where the documents hold no more.

    Raises:
        DataError: Not even one sequence; the text says how many tokens came and were needed.
    """
    blocks: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    total = used = 0
    for document in documents:
        used += 1
        for block in _tokenise(document, tokenizer):
            blocks.append(np.asarray(block, dtype=np.int64))
            total += len(block)
            if total >= max_tokens:
                break
        if total >= max_tokens:
            break
    if total < seq_len:
        raise DataError(
            f"texts: too few tokens: {total} came from {used} documents, at least {seq_len} are needed "
            "(one sequence); give more text or a smaller seq_len"
        )
    return Tokens(torch.from_numpy(np.concatenate(blocks)[:max_tokens]), seq_len)


def _tokenise(document: str, tokenizer: Any) -> Iterator[list[int]]:
    eos = getattr(tokenizer, "eos_token_id", None)
    last: int | None = None
    chat = isinstance(document, ChatText)
    # A conversation is not cut: its special tokens are written out in it.
    size = max(1, len(document)) if chat else _PIECE
    for start in range(0, len(document), size):
        piece = str(document[start : start + size])
        opens = start == 0 and not chat
        ids = list(tokenizer(piece, add_special_tokens=opens, verbose=False)["input_ids"])
        if ids:
            last = ids[-1]
            yield ids
    if eos is not None and last != eos:
        yield [int(eos)]
