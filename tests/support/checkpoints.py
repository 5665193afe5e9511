"""A tiny checkpoint on disk with a character-level tokenizer, as a user would name it on a command line."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sere.calibrate import calibrate
from tests.support.tiny import tiny_model

CHARACTERS = "\n " + digits + ascii_letters + "!\"#$%&'()*+,-./:;<=>?@[]^_{|}"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a character."""
    tokens = ("<pad>", "<end>", "<unknown>", *CHARACTERS)
    core = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unknown>")
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>",
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_checkpoint(folder: Path, name: str = "qwen3_moe") -> Path:
    """Save a tiny random model with its tokenizer, and ``table.safetensors`` beside its folder."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(name, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=1)
    model.generation_config.eos_token_id = [1, 40, 41, 42, 43, 44, 45]  # so that answers end
    path = folder / "checkpoint"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    calibrate(model, metric="weights").save(folder / "table.safetensors")
    return path
