"""What the tests of this folder share."""

from tests.support.answering import model, tokenizer

__all__ = ["model", "tokenizer"]
