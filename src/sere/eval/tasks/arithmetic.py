"""Addition, subtraction, multiplication and remainders, worked digit by digit."""

from __future__ import annotations

from random import Random

from .question import Question, worked


def _number(rng: Random, low: int, high: int) -> int:
    """Return a number with ``low`` to ``high`` digits, every length equally likely."""
    digits = rng.randint(low, high)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Return the digits of both numbers column by column, lowest first, as many as the longer one has."""
    return [(a // 10**place % 10, b // 10**place % 10) for place in range(max(len(str(a)), len(str(b))))]


def addition(rng: Random) -> Question:
    """Add two numbers; each step is a column: its two digits and their sum with carry."""
    a, b = _number(rng, 3, 6), _number(rng, 3, 6)
    steps, carry = [], 0
    for x, y in _columns(a, b):
        total = x + y + carry
        carry = total // 10
        steps.append(f"{x}{y}={total:02d}")
    return worked("addition", f"add {a}+{b}", " ".join(steps), str(a + b))


def subtraction(rng: Random) -> Question:
    """Subtract; each step is a column: its two digits, the digit of the result, ``b`` for a borrow."""
    a, b = sorted((_number(rng, 3, 6), _number(rng, 3, 6)), reverse=True)
    steps, borrow = [], 0
    for x, y in _columns(a, b):
        digit = x - y - borrow
        borrow = int(digit < 0)
        steps.append(f"{x}{y}={digit % 10}{'b' if borrow else '.'}")
    return worked("subtraction", f"sub {a}-{b}", " ".join(steps), str(a - b))


def multiplication(rng: Random) -> Question:
    """Multiply by one digit; the steps are the column products with carry, lowest first."""
    a, factor = _number(rng, 4, 7), rng.randint(3, 9)
    steps, carry = [], 0
    for digit in reversed(str(a)):
        column = int(digit) * factor + carry
        carry = column // 10
        steps.append(f"{column:02d}")
    return worked("multiplication", f"mul {a}*{factor}", " ".join(steps), str(a * factor))


def modulo(rng: Random) -> Question:
    """Take a remainder; the steps are those of long division, ``value:remainder`` a digit."""
    modulus, a = rng.randint(3, 12), _number(rng, 4, 6)
    steps, rest = [], 0
    for digit in str(a):
        value = rest * 10 + int(digit)
        rest = value % modulus
        steps.append(f"{value}:{rest}")
    return worked("modulo", f"mod {a}%{modulus}", " ".join(steps), str(rest))
