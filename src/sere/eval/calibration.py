"""Calibrate on the tasks' own training texts: what the bundled model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sere.eval.tasks import calibration_texts
from sere.similarity import DEFAULT_METRIC

if TYPE_CHECKING:
    from sere.table import SimilarityTable

# Far more than MAX_TOKENS needs, so that the texts that are used come from all tasks.
TEXTS = 900
# On the bundled model 8,192 tokens give the answers of 25,600, in a third of the time.
MAX_TOKENS = 8_192


def calibrate_on_tasks(
    model: Any,
    tokenizer: Any,
    *,
    metric: str = DEFAULT_METRIC,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> SimilarityTable:
    """Return a table calibrated on texts of the training split, without any held-out question.

    Args:
        model: A model with experts modules and the bundled model's tokenizer.
        tokenizer: Its tokenizer.
        metric: A metric's name.
        max_tokens: At most this many tokens are used.
        seed: Seed of the texts and their order.
        progress: Show a bar on a terminal.

    Raises:
        UnsupportedModel: The model has no experts modules that can be calibrated.
    """
    from sere.calibrate import calibrate
    from sere.similarity import get_metric

    if get_metric(metric).accumulator is None:  # of weights: it reads no texts
        return calibrate(model, tokenizer, metric=metric, progress=progress)
    texts = calibration_texts(count=TEXTS, seed=seed)
    return calibrate(
        model, tokenizer, texts, metric=metric, max_tokens=max_tokens, seed=seed, progress=progress
    )
