"""Sorting, ordering expressions by value, closing brackets."""

from __future__ import annotations

from random import Random

from .question import Question, worked

_CLOSER = {"(": ")", "[": "]", "{": "}"}


def sorting(rng: Random) -> Question:
    """Sort two-digit numbers; the step is each half sorted, the answer merges them."""
    numbers = [f"{n:02d}" for n in rng.sample(range(100), rng.randint(5, 8))]
    middle = len(numbers) // 2
    halves = f"{' '.join(sorted(numbers[:middle]))}|{' '.join(sorted(numbers[middle:]))}"
    return worked("sorting", f"sort {' '.join(numbers)}", halves, " ".join(sorted(numbers)))


def _expression(rng: Random) -> tuple[str, int]:
    """Return a small expression and its value."""
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(3, 19), rng.randint(3, 9)
        return f"{a}*{b}", a * b
    a, b = rng.randint(31, 99), rng.randint(3, 30)
    if kind == 1:
        return f"{a}+{b}", a + b
    return f"{a}-{b}", a - b


def ordering(rng: Random) -> Question:
    """Order three or four expressions by value; the steps are the values."""
    count = rng.randint(3, 4)
    while True:
        pairs = [_expression(rng) for _ in range(count)]
        values = [value for _, value in pairs]
        if len(set(values)) == count:
            break
    letters = "".join(letter for _, letter in sorted(zip(values, "abcd", strict=False)))
    prompt = f"order {' '.join(text for text, _ in pairs)}"
    return worked("ordering", prompt, " ".join(map(str, values)), letters)


def brackets(rng: Random) -> Question:
    """Close the open brackets; the step lists those still open, outermost first."""
    text = ""
    stack: list[str] = []
    length = rng.randint(10, 24)
    while len(text) < length or len(stack) < 4:
        if stack and rng.random() < (0.3 if len(stack) < 12 else 0.7):
            text += _CLOSER[stack.pop()]
        else:
            stack.append(rng.choice("([{"))
            text += stack[-1]
    closers = "".join(_CLOSER[bracket] for bracket in reversed(stack))
    return worked("brackets", f"close {text}", "".join(stack), closers)
