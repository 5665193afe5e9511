"""Short templated word problems with two to four operations."""

from __future__ import annotations

from random import Random

from .question import Question, vocabulary, worked

_NAMES = vocabulary("Ada Ben Cleo Dan Eva Finn Gus Ines Jon Kim Leo Mia Noa Ola Pia Rex Sam Tess Uma Vic")
_THINGS = vocabulary("apples nuts stones stamps coins shells pens cards buttons marbles plums books")
_BOXES = vocabulary("bags boxes jars crates baskets trays")


def _start(rng: Random, things: str) -> tuple[str, list[str], int]:
    """Return the opening sentence, its steps and how many things there are then."""
    if rng.random() < 0.5:
        number = rng.randint(21, 99)
        return f"has {number} {things}.", [], number
    boxes, each = rng.randint(3, 9), rng.randint(6, 15)
    text = f"has {boxes} {rng.choice(_BOXES)} of {each} {things}."
    return text, [f"{boxes}*{each}={boxes * each}"], boxes * each


def _change(rng: Random, total: int, other: str) -> tuple[str, list[str], int]:
    """Return one further sentence, its steps and the new total."""
    kind = rng.randrange(4)
    if kind == 0:
        number = rng.randint(5, 60)
        return f"{other} brings {number} more.", [f"{total}+{number}={total + number}"], total + number
    if kind == 1 and total > 20:
        number = rng.randint(7, total - 5)
        return f"{number} go to {other}.", [f"{total}-{number}={total - number}"], total - number
    if kind == 2:
        boxes, each = rng.randint(2, 9), rng.randint(3, 9)
        product = boxes * each
        steps = [f"{boxes}*{each}={product}", f"{total}+{product}={total + product}"]
        return f"Then come {boxes} {rng.choice(_BOXES)} of {each}.", steps, total + product
    if total % 2 == 0:
        return "Half are lost.", [f"{total}/2={total // 2}"], total // 2
    return "One is lost.", [f"{total}-1={total - 1}"], total - 1


def story(rng: Random) -> Question:
    """Follow a number of things through a little story; the steps are the calculations."""
    name, other = rng.sample(_NAMES, 2)
    things = rng.choice(_THINGS)
    text, steps, total = _start(rng, things)
    parts = [f"{name} {text}"]
    for _ in range(rng.randint(2, 3)):
        text, more, total = _change(rng, total, other)
        parts.append(text)
        steps += more
    return worked("story", f"{' '.join(parts)} How many?", " ".join(steps), str(total))
