"""Checkpoints that bring Python code, which leaves a file behind when it runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.checkpoints import save_checkpoint, tiny_tokenizer
from tests.support.damage import change_json, change_weights
from tests.support.tiny import tiny_model

_MODEL = """
from pathlib import Path
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
Path({mark!r}).touch()
class MillConfig(Qwen3MoeConfig):
    model_type = "mill_moe"
class MillForCausalLM(Qwen3MoeForCausalLM):
    config_class = MillConfig
"""
_TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class MillTokenizer(PreTrainedTokenizerFast):
    pass
"""


def model_with_code(folder: Path, mark: Path, model_type: str = "mill_moe") -> Path:
    """Save a tiny model whose config names code beside it; the code makes ``mark`` when it runs."""
    path = save_checkpoint(folder)
    # Transformers turns the names of single experts into its own for the model types that it knows alone.
    change_weights(
        path,
        lambda _: tiny_model(
            "qwen3_moe", vocab_size=len(tiny_tokenizer()), pad_token_id=0, bos_token_id=None, eos_token_id=1
        ).state_dict(),
    )
    (path / "modeling_mill.py").write_text(_MODEL.format(mark=str(mark)))
    auto_map = {
        "AutoConfig": "modeling_mill.MillConfig",
        "AutoModelForCausalLM": "modeling_mill.MillForCausalLM",
    }
    return change_json(
        path / "config.json", model_type=model_type, auto_map=auto_map, architectures=["MillForCausalLM"]
    )


def tokenizer_with_code(folder: Path, mark: Path) -> Path:
    """Save a tiny model whose tokenizer is code beside it; the code makes ``mark`` when it runs."""
    path = save_checkpoint(folder, "gpt_oss")
    (path / "tokenization_mill.py").write_text(_TOKENIZER.format(mark=str(mark)))
    auto_map = {"AutoTokenizer": [None, "tokenization_mill.MillTokenizer"]}
    return change_json(path / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="MillTokenizer")
