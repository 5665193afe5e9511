"""Write the trained model for ``from_pretrained``: ``python -m recipe.export --out RUN --to MODEL``.

The folder is read back and compared with the training forward before it takes its place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recipe import models, tokenizer
from recipe.card import write_card
from recipe.experts import use_grouped_experts
from recipe.settings import Settings
from recipe.train import PHASES
from sere.eval.tasks import calibration_texts

LARGEST_BYTES = 20_000_000
TOLERANCE = 1e-3  # of the logits, between two orders of summation in float32


def trained(out: Path, phase: str) -> tuple[models.Moe, Settings]:
    """Return the model of a phase's last checkpoint and the settings of its run."""
    settings = Settings.read(out / "settings.json")
    model = models.moe_model(settings, tokenizer.build())
    model.load_state_dict(torch.load(out / f"{phase}.pt", weights_only=True)["model"])
    return model.eval(), settings


def write_model(model: models.Moe, to: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer.

    Raises:
        RuntimeError: The weights are larger than the package allows.
    """
    characters = tokenizer.build()
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        eos_token_id=characters.eos_token_id,
        pad_token_id=characters.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(to)
    characters.save_pretrained(to)
    size = (to / "model.safetensors").stat().st_size
    if size > LARGEST_BYTES:
        raise RuntimeError(f"model.safetensors has {size} bytes; at most {LARGEST_BYTES} are shipped")


@torch.inference_mode()
def check(to: Path) -> float:
    """Return the largest difference of logits between the exported model and the training forward.

    Raises:
        RuntimeError: They differ by more than rounding, or the tokenizer does not give back its text.
    """
    characters = AutoTokenizer.from_pretrained(to)
    model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    texts = calibration_texts(count=16)
    encoded = [characters(text, return_tensors="pt")["input_ids"] for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        if characters.decode(ids[0]) != text:
            raise RuntimeError(f"the tokenizer does not give back {text!r}")
    expected = [model(input_ids=ids).logits for ids in encoded]
    use_grouped_experts(model)
    found = [model(input_ids=ids).logits for ids in encoded]
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    if worst > TOLERANCE:
        raise RuntimeError(f"the exported model's logits differ from the training forward's by {worst}")
    return worst


def main() -> None:
    """Export, check, write the model card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--to", type=Path, required=True, help="folder of the model")
    parser.add_argument("--phase", choices=PHASES[1:], default=PHASES[-1], help="whose checkpoint")
    args = parser.parse_args()
    model, settings = trained(args.out, args.phase)
    write_model(model, args.to)
    print(f"largest difference of logits: {check(args.to):.1e}")
    log = [json.loads(line) for line in (args.out / "log.jsonl").read_text().splitlines()]
    write_card(args.to, settings, log)


if __name__ == "__main__":
    main()
