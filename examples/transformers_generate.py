"""Calibrate a model once, then generate with re-routing on. Without a path: the model that sere ships."""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import sere
from sere.bundled import model_path
from sere.eval.tasks import calibration_texts, mixed


def main(path: str) -> None:
    """Print the answers to a batch of questions and how many experts each layer read."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", experts_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    table_path = Path(tempfile.gettempdir()) / "example.sere"
    texts = calibration_texts(count=400)
    sere.calibrate(model, tokenizer, texts, max_tokens=4096).save(table_path)

    questions = mixed(split="test", per_task=2)
    batch = tokenizer([question.prompt for question in questions], return_tensors="pt", padding=True)
    with sere.apply(model, table_path) as handle:
        output = model.generate(**batch, max_new_tokens=96, do_sample=False)
    answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question.prompt.strip()}  ->  {answer.strip()}")
    for layer in handle.stats():
        print(
            f"layer {layer.index}: {layer.distinct_before:.1f} -> {layer.distinct_after:.1f} experts per step"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(model_path()))
