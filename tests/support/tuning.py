"""A tiny model with all that tuning it takes, and questions to ask it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sere.bench.target import random_table
from sere.structure import find_experts
from sere.table import RoutingSample, SimilarityTable
from sere.tune import run as tuning
from sere.tune.measure import Meter
from sere.tune.plan import Goal, TunePlan
from sere.tune.work import Work
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model

WORDS = ("add", "sort", "the mill", "reverse", "one two", "x y z")
PROMPTS = tuple(f"{word} {number}" for number in range(4) for word in WORDS)


def meters_made(monkeypatch: pytest.MonkeyPatch) -> list[Meter]:
    """Return a list to which tunings from now on add the meters that they make."""
    seen: list[Meter] = []

    def meter(*args: Any) -> Meter:
        seen.append(Meter(*args))
        return seen[-1]

    monkeypatch.setattr(tuning, "Meter", meter)
    return seen


def tuned_model(name: str = "qwen2_moe") -> Any:
    """Return a tiny random model, whose answers end now and then."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(name, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [1, *range(40, 46)]
    return model


def routed_table(model: Any, *, tokens: int = 96, texts: int = 12, factors: bool = False) -> SimilarityTable:
    """Return random similarities of a model, with random choices of its router."""
    generator = torch.Generator().manual_seed(5)
    layers = find_experts(model)
    E, K = layers[0].num_experts, layers[0].top_k
    routing = RoutingSample(
        ids={
            one.index: torch.rand(tokens, E, generator=generator).argsort(1)[:, :K].short() for one in layers
        },
        weights={
            one.index: torch.rand(tokens, K, generator=generator).add(0.1).half().sort(1, descending=True)[0]
            for one in layers
        },
        starts=torch.arange(0, tokens + 1, tokens // texts, dtype=torch.int32),
        energy={one.index: torch.ones(E) for one in layers},
    )
    return replace(random_table(model, factors=factors), routing=routing)


def tune_plan_of(**changes: Any) -> TunePlan:
    """Return a plan of two batch sizes and two tiers for `tuned_model`."""
    values: dict[str, Any] = {
        "prompts": PROMPTS,
        "goals": {"balanced": Goal("kl", 0.05), "fast": Goal("kl", 0.3)},
        "batch_sizes": [4, 8],
        "max_new_tokens": 8,
        "by": "bytes",
    }
    return TunePlan(**(values | changes))


def question_file(path: Path, count: int = 24) -> Path:
    """Write questions whose right answer is any word with a digit or letter in it."""
    rows: Iterable[dict[str, Any]] = (
        {"prompt": PROMPTS[i % len(PROMPTS)] + str(i), "answer": str(i % 7), "pattern": r"\d"}
        for i in range(count)
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


class Breaking(Work):
    """Finished measurements that are interrupted after some of them."""

    left = 0

    def put(self, name: str, result: Any) -> None:
        """Keep one, or be interrupted."""
        if Breaking.left == 0:
            raise KeyboardInterrupt
        Breaking.left -= 1
        super().put(name, result)
