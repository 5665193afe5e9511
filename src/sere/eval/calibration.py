"""Calibrate on the tasks' own training texts: what the bundled model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sere.eval.tasks import calibration_texts

if TYPE_CHECKING:
    from sere.table import SimilarityTable

# Worked questions are about 70 characters, so these fill the paper's 51,200 tokens.
TEXTS = 900


def calibrate_on_tasks(
    model: Any,
    tokenizer: Any,
    *,
    metric: str = "frobenius",
    max_tokens: int = 51_200,
    seed: int = 0,
    progress: bool = True,
) -> SimilarityTable:
    """Return a table calibrated on texts of the training split; no held-out question is among them.

    Args:
        model: A model with experts modules, of the bundled kind.
        tokenizer: Its tokenizer.
        metric: A metric's name.
        max_tokens: At most this many tokens are used.
        seed: Of texts and their order.
        progress: Show a bar on a terminal.

    Raises:
        UnsupportedModel: The model has no experts modules that can be calibrated.
    """
    from sere.calibrate import calibrate

    texts = calibration_texts(count=TEXTS, seed=seed)
    return calibrate(
        model, tokenizer, texts, metric=metric, max_tokens=max_tokens, seed=seed, progress=progress
    )
