"""The character-level tokenizer: 93 characters and three special tokens."""

from __future__ import annotations

from string import ascii_letters, digits

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
CHARACTERS = "\n " + digits + ascii_letters + "!\"#$%&'()*+,-./:;<=>?@[]^_{|}"


def build() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token a character, ``<|end|>`` as eos, ``<|pad|>`` as pad."""
    tokens = (PAD, END, UNKNOWN, *CHARACTERS)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
