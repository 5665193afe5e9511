from __future__ import annotations

from typing import Any

import pytest
import torch

from sere.calibrate.packing import pack
from sere.errors import ConfigError, DataError
from tests.support.calibration import BOS, EOS, char_tokenizer


def test_end_of_text_stands_between_documents() -> None:
    """Documents are joined with the end-of-text token behind each, and cut into sequences across them."""
    tokenizer = char_tokenizer()
    a, b = tokenizer("abcde")["input_ids"], tokenizer("fgh")["input_ids"]
    tokens = pack(["abcde", "fgh"], tokenizer, max_tokens=100, seq_len=4)
    assert tokens.ids.tolist() == [*a, EOS, *b, EOS]
    assert [batch.tolist() for batch in tokens.batches(8)] == [[[*a[:4]], [a[4], EOS, *b[:2]]], [[b[2], EOS]]]


def test_no_padding_ever() -> None:
    """Where the stream does not divide, the last sequence is short and alone: no batch holds a pad."""
    tokens = pack(["abcdefghij" * 3], char_tokenizer(), max_tokens=27, seq_len=4)
    batches = list(tokens.batches(4))
    assert [list(batch.shape) for batch in batches] == [[4, 4], [2, 4], [1, 3]]
    assert torch.cat([batch.flatten() for batch in batches]).equal(tokens.ids)
    assert tokens.num_tokens == 27


def test_documents_are_read_no_further_than_needed() -> None:
    """A stream behind the last needed document is not touched: endless sources end."""

    def endless() -> Any:
        while True:
            yield "abcdefgh"

    assert pack(endless(), char_tokenizer(), max_tokens=20, seq_len=4).num_tokens == 20


def test_tokenizers_own_opening_and_closing_tokens_are_kept_once() -> None:
    """An opening token of the tokenizer comes once a document; its closing one is not doubled."""
    calls: list[tuple[int, bool]] = []

    class Opening:
        eos_token_id = EOS

        def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
            calls.append((len(text), add_special_tokens))
            closing = [EOS] if len(text) < 65_536 else []
            return {"input_ids": [BOS] * add_special_tokens + [5] * len(text) + closing}

    tokens = pack(["x" * 65_540, "yy"], Opening(), max_tokens=10**6, seq_len=4)
    assert calls == [(65_536, True), (4, False), (2, True)]
    ids = tokens.ids.tolist()
    assert ids.count(BOS) == 2
    assert ids[-4:] == [BOS, 5, 5, EOS]
    assert ids.count(EOS) == 2


def test_tokenizer_without_end_of_text_joins_documents_directly() -> None:
    """Where the tokenizer has no end-of-text token, none is made up."""
    tokenizer = char_tokenizer()
    tokenizer.eos_token = None
    assert pack(["ab", "cd"], tokenizer, max_tokens=9, seq_len=4).num_tokens == 4


def test_too_few_tokens_says_how_many_there_are_and_are_needed() -> None:
    """Less than one sequence is an error with both numbers."""
    with pytest.raises(
        DataError, match=r"expected at least 128 tokens \(one sequence\), got 4 from 1 documents"
    ):
        pack(["abc"], char_tokenizer(), max_tokens=51_200, seq_len=128)


class Fixed:
    """A tokenizer that returns the same for every text."""

    eos_token_id = EOS

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def __call__(self, text: str, **_: Any) -> Any:
        """Return it."""
        return self.returned


def test_a_tokenizer_that_makes_nothing_of_the_texts_is_refused() -> None:
    """End-of-text tokens alone are no data: no table is made of them."""
    with pytest.raises(
        DataError, match=r"tokens \(one sequence\), got 0 from 9 documents.*is it the model's tokenizer"
    ):
        pack(["abc"] * 9, Fixed({"input_ids": []}), max_tokens=8, seq_len=4)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ({"input_ids": [5, -1, 6]}, "expected token ids from 0 on in one list for a text, got -1 from Fixed"),
        ({"input_ids": [[5, 6]]}, r"got int64 \[1, 2\] from Fixed"),
        ({"input_ids": [0.5]}, r"got float64 \[1\] from Fixed"),
        ({"ids": [5]}, "expected one that returns input_ids for a text.*KeyError"),
        ([5, 6], "expected one that returns input_ids for a text.*TypeError"),
    ],
)
def test_a_tokenizer_that_returns_no_token_ids_is_refused(returned: Any, text: str) -> None:
    """Negative ids, batches, numbers with a fraction or no ids at all: the text says what came."""
    with pytest.raises(ConfigError, match=text):
        pack(["abc"], Fixed(returned), max_tokens=8, seq_len=2)


def test_texts_that_the_tokenizer_does_not_know_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing but unknown tokens is an error, mostly unknown ones a line in the log, some are neither."""
    tokenizer = char_tokenizer(unk_token="<pad>")
    with pytest.raises(DataError, match="every token of the texts is unknown to it; give the model's own"):
        pack(["äöüß"], tokenizer, max_tokens=8, seq_len=2)
    assert pack(["äab"], tokenizer, max_tokens=8, seq_len=2).num_tokens == 4
    assert not caplog.messages
    pack(["äöab ü"] * 2 + ["äöü"], tokenizer, max_tokens=20, seq_len=2)
    (line,) = caplog.messages
    assert "60 % of the calibration tokens are unknown to the tokenizer" in line


def test_a_tokenizer_without_special_tokens_is_taken() -> None:
    """No end-of-text, opening, padding or unknown token: the documents' tokens alone."""
    tokenizer = char_tokenizer()
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = None
    assert (
        pack(["abc", "de"], tokenizer, max_tokens=9, seq_len=2).ids.tolist()
        == tokenizer("abcde")["input_ids"]
    )


def test_digest_follows_the_tokens() -> None:
    """The same documents have the same digest, others another."""
    tokenizer = char_tokenizer()
    digests = [
        pack([text], tokenizer, max_tokens=64, seq_len=4).digest for text in ("abcdef", "abcdef", "abcdeg")
    ]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64
