"""What the model continues if nobody gives prompts: pieces of texts, or questions of sere's own tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random

from sere.errors import DataError
from sere.eval.tasks import TASK_NAMES, Question, mixed
from sere.texts import Source, load_texts
from sere.tune.plan import MOST_PROMPTS

# Characters of a piece: enough that the model knows what it continues.
_PIECE = 240
# Pieces that are read before some are chosen.
_READ = 20_000


def pieces_of(
    texts: Source, *, field: str = "text", split: str = "train", count: int = MOST_PROMPTS, seed: int = 0
) -> list[str]:
    """Return the beginnings of texts, or pieces of long ones, for the model to continue.

    Args:
        texts: As for `sere.calibrate`.
        field: Field or column of the text.
        split: Split of a Hugging Face data set.
        count: How many at most.
        seed: Seed of the choice.

    Raises:
        DataError: The texts cannot be read, or hold no piece that is long enough.
    """
    found = list(islice(_pieces(load_texts(texts, field=field, split=split, seed=seed)), _READ))
    if not found:
        raise DataError(
            f"texts: expected texts of at least {_PIECE // 2} characters for the model to continue, got only "
            "shorter ones"
        )
    Random(seed).shuffle(found)
    return found[:count]


def own_questions(*, count: int = MOST_PROMPTS, seed: int = 0) -> list[Question]:
    """Return questions of sere's own tasks, none of which ``sere eval`` asks.

    Args:
        count: How many at least; as many of each task.
        seed: Seed of the questions.
    """
    per_task = -(-count // len(TASK_NAMES))
    return mixed(split="train", per_task=per_task, seed=seed)


def _pieces(documents: Iterator[str]) -> Iterator[str]:
    for document in documents:
        words = str(document)
        for start in range(0, len(words), 2 * _PIECE):
            # Cut between words, so that the last one is whole.
            piece = words[start : start + _PIECE].rpartition(" ")[0].strip()
            if len(piece) >= _PIECE // 2:
                yield piece
