"""The record that every task family produces."""

from __future__ import annotations

from dataclasses import dataclass

ANSWER_MARK = ">"
"""Separates the worked steps from the answer in a solution."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its one right answer.

    Attributes:
        task: Name of the task, one of ``TASK_NAMES``.
        prompt: What the model reads; ends with a newline.
        solution: What the model should print: the worked steps, ``>``, the answer.
        answer: The final part of ``solution``; the only part that is marked.
    """

    task: str
    prompt: str
    solution: str
    answer: str

    @property
    def key(self) -> str:
        """What tells it from other questions."""
        return self.prompt

    def is_right(self, output: str) -> bool:
        """Say whether the final answer of an output, the part after its last ``>``, is exactly right."""
        _, mark, answer = output.rpartition(ANSWER_MARK)
        return bool(mark) and answer.strip() == self.answer


def worked(task: str, prompt: str, steps: str, answer: str) -> Question:
    """Return the question whose solution is ``steps>answer``."""
    return Question(task, f"{prompt}\n", f"{steps}{ANSWER_MARK}{answer}", answer)


def vocabulary(words: str) -> tuple[str, ...]:
    """Return the words of a text, in order."""
    return tuple(words.split())
