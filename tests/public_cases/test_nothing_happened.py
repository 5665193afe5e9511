"""Somebody turns re-routing on and nothing is re-routed: one line says why."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

import sere
from tests.support.decoding import prompts, random_table
from tests.support.tiny import tiny_model


def score(model: Any) -> None:
    """As lm-eval's log-likelihood tasks do: whole texts, without a cache."""
    with torch.no_grad():
        model(prompts(), use_cache=False)


def generate(model: Any, rows: int = 6, **options: Any) -> None:
    model.generate(prompts(rows), max_new_tokens=4, do_sample=False, **options)


@pytest.mark.parametrize(
    ("settings", "use", "text"),
    [
        ({}, score, "no decode step was seen in 1 call of the model; prompts, log-likelihood scoring"),
        ({}, lambda m: generate(m, use_cache=False), "no decode step was seen in 4 calls of the model"),
        (
            {"active_experts": 12},
            lambda m: generate(m, 2),
            "active_experts=12 is not below what these",
        ),
        ({"threshold": 2}, generate, "threshold=2 is above every similarity in the table"),
        (
            {"active_experts": 16},
            generate,
            "active_experts=16 disables re-routing: with 16 experts per layer",
        ),
        ({"select_top_k": 4}, generate, "select_top_k=4 is not smaller than the model's top_k=4, so nothing"),
        ({}, lambda _: None, "the model was not called while re-routing was on"),
    ],
    ids=["scoring", "no cache", "two prompts", "rho of 2", "floor of E", "S of K", "not used"],
)
def test_one_line_says_why(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], use: Any, text: str
) -> None:
    """The logger ``sere`` warns once, at the latest when the block ends."""
    import_module("sere.integrations.transformers.apply").warn_once.forget()
    model = tiny_model("qwen3_moe")
    with sere.apply(model, random_table(model), **{"select_top_k": 1} | settings):
        use(model)
    (line,) = [record.getMessage() for record in caplog.records]
    assert text in line


def test_the_newest_cache_argument_is_seen() -> None:
    """``generate`` of every tested Transformers hands on a cache that is found: steps are re-routed."""
    model = tiny_model("qwen3_moe")
    with sere.apply(model, random_table(model), select_top_k=1) as handle:
        generate(model)
    assert [layer.steps for layer in handle.stats()] == [3, 3]
