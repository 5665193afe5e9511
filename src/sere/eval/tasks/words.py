"""Reversal and letter shifts on made-up words."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from .question import Question, worked


def _word(rng: Random, low: int, high: int) -> str:
    """Return random letters, ``low`` to ``high`` of them."""
    return "".join(rng.choices(ascii_lowercase, k=rng.randint(low, high)))


def reversal(rng: Random) -> Question:
    """Reverse a line of three words; the step reverses each word where it is."""
    words = [_word(rng, 3, 7) for _ in range(3)]
    turned = [word[::-1] for word in words]
    return worked("reversal", f"reverse {' '.join(words)}", " ".join(turned), " ".join(reversed(turned)))


def shift(rng: Random) -> Question:
    """Shift letters along the alphabet; each step is a letter, its new position (a = 00) and letter."""
    amount, word = rng.randint(2, 24), _word(rng, 5, 8)
    positions = [(ord(letter) - ord("a") + amount) % 26 for letter in word]
    shifted = [ascii_lowercase[position] for position in positions]
    steps = " ".join(
        f"{old}{position:02d}{new}" for old, position, new in zip(word, positions, shifted, strict=True)
    )
    return worked("shift", f"shift {amount} {word}", steps, "".join(shifted))
