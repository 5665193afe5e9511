"""A table for the bundled model, for what needs one, whatever it says."""

from __future__ import annotations

from sere.table import SimilarityTable


def random_bundled_table() -> SimilarityTable:
    """Return random similarities of the bundled model."""
    from transformers import AutoModelForCausalLM

    from sere.bench.target import random_table
    from sere.bundled import model_path

    return random_table(AutoModelForCausalLM.from_pretrained(model_path()))
