"""English passages from a small grammar: little stories whose facts stay consistent.

Who is where, who holds what, the weather and the time of day are kept as state; every sentence is
true of it, and some sentences can be predicted only from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from .question import vocabulary

_PEOPLE = {
    "she": vocabulary(
        "Alice Bertha Clara Doris Edith Flora Greta Hanna Irene Julia Laura Marta Nora Paula Rosa"
    ),
    "he": vocabulary(
        "Anton Boris Conrad Dennis Emil Felix Georg Henry Isaac Jakob Karl Lukas Martin Oskar Peter"
    ),
}
_HIS = {"she": "her", "he": "his"}
_PLACES = vocabulary(
    "kitchen garden harbour library market station orchard workshop attic chapel bakery meadow cellar "
    "school museum tavern mill stable forest village"
)
_ITEMS = vocabulary(
    "lantern basket letter hammer violin map kettle blanket ladder mirror compass notebook umbrella rope "
    "candle bottle teapot saddle ring whistle"
)
_ADJECTIVES = vocabulary(
    "old small heavy broken red silver wooden dusty lovely strange green borrowed painted empty"
)
_ANIMALS = vocabulary("dog cat horse goat crow goose rabbit donkey owl fox")
_TRADES = vocabulary(
    "baker sailor teacher farmer painter doctor miller tailor weaver gardener clerk carpenter"
)
_MOODS = vocabulary("happy tired hungry curious worried proud quiet cheerful lonely angry")
_WEATHER = {
    "It was raining": "the ground was still wet",
    "Snow was falling": "the roofs were white",
    "The sun was shining": "the stones were warm",
    "A cold wind blew": "the doors kept rattling",
    "Fog lay over the hills": "nobody could see the road",
}
_TIMES = {
    "morning": "noon",
    "noon": "the afternoon",
    "afternoon": "the evening",
    "evening": "midnight",
}


@dataclass
class _Person:
    name: str
    pronoun: str
    place: str
    items: list[str] = field(default_factory=list)


@dataclass
class _World:
    rng: Random
    people: list[_Person]
    free_items: list[str]
    weather: str
    time: str

    def other(self, person: _Person) -> _Person:
        """Return the other one of the two people."""
        return self.people[1] if person is self.people[0] else self.people[0]


def _article(phrase: str) -> str:
    """Return the phrase with ``a`` or ``an``."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _noun(item: str) -> str:
    """Return the last word of an item such as ``old lantern``."""
    return item.rpartition(" ")[2]


def _new_world(rng: Random) -> _World:
    """Return two people in two different places and the things they may find."""
    pronouns = rng.choices(("she", "he"), k=2)
    names = [rng.choice(_PEOPLE[pronoun]) for pronoun in pronouns]
    while names[0] == names[1]:
        names[1] = rng.choice(_PEOPLE[pronouns[1]])
    places = rng.sample(_PLACES, 2)
    items = [f"{rng.choice(_ADJECTIVES)} {item}" for item in rng.sample(_ITEMS, 4)]
    people = [_Person(*facts) for facts in zip(names, pronouns, places, strict=True)]
    return _World(rng, people, items, rng.choice(list(_WEATHER)), rng.choice(list(_TIMES)))


def _find(world: _World, person: _Person) -> str | None:
    if not world.free_items:
        return None
    item = world.free_items.pop()
    person.items.append(item)
    verb = world.rng.choice(("found", "bought", "picked up", "saw and took"))
    return f"In the {person.place} {person.name} {verb} {_article(item)}."


def _go(world: _World, person: _Person) -> str | None:
    target = world.rng.choice([place for place in _PLACES if place != person.place])
    start, person.place = person.place, target
    verb = world.rng.choice(("walked", "hurried", "ran", "went"))
    carried = f" with the {_noun(person.items[-1])}" if person.items else ""
    return f"{person.name} {verb} from the {start} to the {target}{carried}."


def _meet(world: _World, person: _Person) -> str | None:
    other = world.other(person)
    if other.place == person.place:
        return None
    person.place = other.place
    return f"Then {person.name} came to the {other.place}, where {other.name} was waiting."


def _give(world: _World, person: _Person) -> str | None:
    other = world.other(person)
    if not person.items or person.place != other.place:
        return None
    item = person.items.pop()
    other.items.append(item)
    verb = world.rng.choice(("gave", "handed", "lent"))
    holder = f"so now {other.name} had {_article(item)}"
    return f"{person.name} {verb} the {_noun(item)} to {other.name}, {holder}."


def _feel(world: _World, person: _Person) -> str | None:
    mood = world.rng.choice(_MOODS)
    animal = world.rng.choice(_ANIMALS)
    return f"{person.name} was {mood}, for {_HIS[person.pronoun]} {animal} was {mood} too."


def _weather(world: _World, _person: _Person) -> str | None:
    if not world.weather:
        return None
    effect, world.weather = _WEATHER[world.weather], ""
    return f"Because of the weather {effect}."


def _hold(_world: _World, person: _Person) -> str | None:
    if not person.items:
        return f"{person.name} had nothing in {_HIS[person.pronoun]} hands."
    things = " and ".join(f"the {_noun(item)}" for item in person.items)
    return f"{person.name} still had {things}."


def _pass_time(world: _World, person: _Person) -> str | None:
    if world.time not in _TIMES:
        return None
    later, world.time = _TIMES[world.time], ""
    return f"Soon it was {later}, and {person.name} was still in the {person.place}."


_EVENTS: tuple[Callable[[_World, _Person], str | None], ...] = (
    _find, _find, _go, _go, _meet, _give, _give, _feel, _weather, _hold, _pass_time,
)  # fmt: skip


def passage(rng: Random) -> str:
    """Return one little story of about 200 to 300 characters."""
    world = _new_world(rng)
    first, second = world.people
    day = f"{world.weather} that {world.time}"
    parts = [
        f"{day}. {first.name} the {rng.choice(_TRADES)} was in the {first.place},"
        f" and {second.name} the {rng.choice(_TRADES)} was in the {second.place}."
    ]
    events, wanted = rng.randint(2, 4), 0
    while wanted < events:
        sentence = rng.choice(_EVENTS)(world, rng.choice(world.people))
        if sentence is not None:
            parts.append(sentence)
            wanted += 1
    return " ".join(parts)
