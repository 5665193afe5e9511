"""Questions with one right answer each, and English passages, made by seeded rules.

Which of the two splits a prompt belongs to is decided by a digest of the prompt itself, so no
prompt can be in both, whatever the seeds. Plain Python: only the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from hashlib import blake2b
from random import Random
from typing import Literal, TypeVar

from . import arithmetic, passages, sequences, stories, words
from .question import ANSWER_MARK, Question

__all__ = [
    "ANSWER_MARK",
    "TASK_NAMES",
    "Question",
    "Split",
    "calibration_texts",
    "english",
    "mixed",
    "questions",
    "split_of",
]

_T = TypeVar("_T")
Split = Literal["train", "test"]

_MAKERS: dict[str, Callable[[Random], Question]] = {
    "addition": arithmetic.addition,
    "subtraction": arithmetic.subtraction,
    "multiplication": arithmetic.multiplication,
    "modulo": arithmetic.modulo,
    "sorting": sequences.sorting,
    "ordering": sequences.ordering,
    "brackets": sequences.brackets,
    "reversal": words.reversal,
    "shift": words.shift,
    "story": stories.story,
}
TASK_NAMES: tuple[str, ...] = tuple(_MAKERS)
_TEST_SHARE = 8  # one prompt in eight belongs to the test split
_PATIENCE = 1000  # draws in a row without a new item after which a task counts as exhausted


def split_of(prompt: str) -> Split:
    """Return the split that ``prompt`` belongs to: its digest decides, nothing else."""
    return "test" if blake2b(prompt.encode(), digest_size=4).digest()[0] % _TEST_SHARE == 0 else "train"


def questions(task: str, *, split: Split, count: int, seed: int = 0) -> list[Question]:
    """Return ``count`` distinct questions of one task.

    Args:
        task: One of ``TASK_NAMES``.
        split: ``"train"`` or ``"test"``; no prompt is in both.
        count: How many, at least 0.
        seed: The same seed gives the same questions, on every machine.

    Raises:
        ValueError: The task or split is unknown, ``count`` is negative or larger than the task can fill.
    """
    if task not in _MAKERS:
        near = get_close_matches(task, TASK_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown task {task!r}: {hint}valid are {', '.join(TASK_NAMES)}")
    return _draw(_MAKERS[task], lambda made: made.prompt, task, split, count, seed)


def mixed(*, split: Split, per_task: int, seed: int = 0) -> list[Question]:
    """Return ``per_task`` questions of every task, interleaved: one of each task, then the next of each."""
    columns = [questions(task, split=split, count=per_task, seed=seed) for task in TASK_NAMES]
    return [question for row in zip(*columns, strict=True) for question in row]


def english(*, split: Split, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` distinct English passages of about 200 characters; arguments as for ``questions``."""
    return _draw(passages.passage, lambda made: made, "english", split, count, seed)


def calibration_texts(*, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` texts of the train split: worked questions of all tasks, every eighth text English."""
    share = count // 8
    english_texts = english(split="train", count=share, seed=seed)
    per_task = -(-(count - share) // len(TASK_NAMES))
    worked = [made.prompt + made.solution for made in mixed(split="train", per_task=per_task, seed=seed)]
    texts = worked[: count - share]
    for index, passage in enumerate(english_texts):
        texts.insert(8 * index + 7, passage)
    return texts


def _draw(
    make: Callable[[Random], _T], key: Callable[[_T], str], name: str, split: str, count: int, seed: int
) -> list[_T]:
    """Draw distinct items of one split until there are ``count``."""
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: valid are 'train', 'test'")
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    rng = Random(f"{name}/{split}/{seed}")  # seeding with a string is the same on every platform
    found: dict[str, _T] = {}
    misses = 0
    while len(found) < count and misses < _PATIENCE:
        made = make(rng)
        identity = key(made)
        if identity in found or split_of(identity) != split:
            misses += 1
            continue
        found[identity] = made
        misses = 0
    if len(found) < count:
        raise ValueError(
            f"{name} has fewer than {count} distinct {split} items; ask for at most {len(found)}"
        )
    return list(found.values())
