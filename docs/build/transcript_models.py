"""What the commands of the page of transcripts find: a second model, configs, texts and tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from string import ascii_letters, digits, punctuation

EXPERTS = 16
# Rows of the file of texts, besides two that hold none.
TEXTS = 256
_SPECIAL = ("<pad>", "<end>", "<unknown>")


def prepare(folder: Path) -> None:
    """Write the second model, both configs, prompts, texts and tasks, unless they are there already."""
    from sere.bundled import model_path
    from sere.eval.harness.tasks import write_tasks
    from sere.eval.tasks import calibration_texts
    from sere.texts import OPENINGS

    if (folder / "tasks").is_dir():
        return
    path = folder / "olmoe"
    _save_olmoe(path)
    for name, source in (("olmoe", path), ("bundled", model_path())):
        (folder / f"{name}-config").mkdir(exist_ok=True)
        shutil.copy(source / "config.json", folder / f"{name}-config")
    prompts = [one.replace("\n", " ") for one in OPENINGS if one.isascii()]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    rows: list[str | None] = [None, " ", *calibration_texts(count=TEXTS)]
    lines = (json.dumps({"prompt": row}) + "\n" for row in rows)
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    write_tasks(folder / "tasks", tasks=["addition"], per_task=16, max_new_tokens=16)


def _save_olmoe(path: Path) -> None:
    """Save a random OLMoE that vLLM serves on a CPU, and a tokenizer with one token a character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

    names = [*_SPECIAL, "\n", " ", *digits, *ascii_letters, *punctuation]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=_SPECIAL[2]))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, clean_up_tokenization_spaces=False, padding_side="left",
        **dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True)),
    )  # fmt: skip
    # vLLM's attention on a CPU wants heads of at least 32. Larger weights than usual: tokens do not repeat.
    config = OlmoeConfig(
        vocab_size=len(names), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=4,
        max_position_embeddings=512, initializer_range=0.3,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(1)
    model = OlmoeForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
