"""Reversal and letter shifts on made-up words."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from .question import Question, worked


def _word(rng: Random, low: int, high: int) -> str:
    """Return random letters, ``low`` to ``high`` of them."""
    return "".join(rng.choices(ascii_lowercase, k=rng.randint(low, high)))


def reversal(rng: Random) -> Question:
    """Reverse a line of three words; the step reverses each word in its place."""
    words = [_word(rng, 3, 7) for _ in range(3)]
    turned = [word[::-1] for word in words]
    return worked("reversal", f"reverse {' '.join(words)}", " ".join(turned), " ".join(reversed(turned)))


def shift(rng: Random) -> Question:
    """Shift letters along the alphabet; each step is a letter, its new place (a = 00), the letter there."""
    amount, word = rng.randint(2, 24), _word(rng, 5, 8)
    places = [(ord(letter) - ord("a") + amount) % 26 for letter in word]
    shifted = [ascii_lowercase[place] for place in places]
    steps = " ".join(f"{old}{place:02d}{new}" for old, place, new in zip(word, places, shifted, strict=True))
    return worked("shift", f"shift {amount} {word}", steps, "".join(shifted))
