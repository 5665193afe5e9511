"""Exact match of a model on the held-out questions: ``python -m recipe.evaluate MODEL [--count 500]``."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipe.card import write_results
from sere.eval.tasks import TASK_NAMES, Question, english, mixed


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Right answers of one task."""

    task: str
    right: int
    count: int
    mean_length: float

    @property
    def percent(self) -> float:
        """Exact match in per cent."""
        return 100 * self.right / self.count

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % confidence interval in points (Agresti and Coull)."""
        n = self.count + 4
        p = (self.right + 2) / n
        return 196 * math.sqrt(p * (1 - p) / n)


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int,
) -> list[str]:
    """Return the greedy completion of each prompt; prompts of like length share a batch."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [prompts[index] for index in chosen]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            completions[index] = text
    return completions


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], batch_size: int
) -> list[TaskResult]:
    """Return the result of each task among the questions."""
    results = []
    for task in TASK_NAMES:
        mine = [question for question in asked if question.task == task]
        if not mine:
            continue
        completions = complete(model, tokenizer, [question.prompt for question in mine], batch_size)
        right = sum(question.is_right(text) for question, text in zip(mine, completions, strict=True))
        length = sum(map(len, completions)) / len(mine)
        results.append(TaskResult(task, right, len(mine), length))
    return results


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the perplexity per character of the texts, first characters not counted."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text + str(tokenizer.eos_token), return_tensors="pt")["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        total += loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return float(torch.tensor(total / count).exp())


def table(results: Sequence[TaskResult]) -> str:
    """Return the results as a Markdown table with a last line for all tasks."""
    right, count = sum(r.right for r in results), sum(r.count for r in results)
    length = sum(r.mean_length * r.count for r in results) / count
    lines = ["| task | questions | exact match, % | ± (95 %) | mean length |", "|---|---|---|---|---|"]
    for result in [*results, TaskResult("all", right, count, length)]:
        lines.append(
            f"| {result.task} | {result.count} | {result.percent:.1f} | {result.half_width:.1f} "
            f"| {result.mean_length:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table of results, then the perplexity on held-out English."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("--count", type=int, default=500, help="test questions per task")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--card", action="store_true", help="write the results into the model card as well")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # The default, grouped_mm, is tens of times slower for bfloat16 on a CPU.
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16, experts_implementation="eager"
    ).eval()
    asked = mixed(split="test", per_task=args.count, seed=args.seed)
    began = time.monotonic()
    results = evaluate(model, tokenizer, asked, args.batch_size)
    text = perplexity(model, tokenizer, english(split="test", count=100, seed=args.seed))
    printed = (
        f"{table(results)}\n\nGreedy decoding, batches of {args.batch_size}, seed {args.seed}. "
        f"Perplexity per character on 100 held-out English passages: {text:.3f}."
    )
    print(f"{printed}\n({time.monotonic() - began:.0f} s)")
    if args.card:
        write_results(Path(args.model), printed)


if __name__ == "__main__":
    main()
