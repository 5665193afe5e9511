"""Facts about the question generators that can fail."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sere.eval import tasks
from sere.eval.tasks import TASK_NAMES, Question, calibration_texts, english, mixed, questions


def _add(prompt: str) -> str:
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(a + b)


def _sub(prompt: str) -> str:
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(a - b)


def _mul(prompt: str) -> str:
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(sum([a] * b))


def _mod(prompt: str) -> str:
    a, b = map(int, re.findall(r"\d+", prompt))
    return str(a - a // b * b)


def _sort(prompt: str) -> str:
    numbers = prompt.split()[1:]
    return " ".join(f"{n:02d}" for n in sorted(map(int, numbers)))


def _order(prompt: str) -> str:
    values = {letter: eval(text) for letter, text in zip("abcd", prompt.split()[1:], strict=False)}
    return "".join(sorted(values, key=values.__getitem__))


def _close(prompt: str) -> str:
    text = prompt.split()[1]
    while text != (shorter := re.sub(r"\(\)|\[\]|\{\}", "", text)):
        text = shorter
    return text[::-1].translate(str.maketrans("([{", ")]}"))


def _reverse(prompt: str) -> str:
    return prompt.strip()[len("reverse ") :][::-1]


def _shift(prompt: str) -> str:
    _, amount, word = prompt.split()
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    table = str.maketrans(alphabet, alphabet[int(amount) :] + alphabet[: int(amount)])
    return word.translate(table)


def _story(prompt: str) -> str:
    total = 0
    for sentence in re.split(r"[.?]\s*", prompt.strip()):
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        if " has " in sentence:
            total = numbers[0] * (numbers[1] if len(numbers) > 1 else 1)
        elif "brings" in sentence:
            total += numbers[0]
        elif " go to " in sentence:
            total -= numbers[0]
        elif sentence.startswith("Then come"):
            total += numbers[0] * numbers[1]
        elif sentence == "Half are lost":
            total //= 2
        elif sentence == "One is lost":
            total -= 1
    return str(total)


SOLVERS: dict[str, Callable[[str], str]] = {
    "addition": _add,
    "subtraction": _sub,
    "multiplication": _mul,
    "modulo": _mod,
    "sorting": _sort,
    "ordering": _order,
    "brackets": _close,
    "reversal": _reverse,
    "shift": _shift,
    "story": _story,
}


def test_every_task_has_an_independent_solver() -> None:
    """A new task must come with a second way to its answers."""
    assert set(SOLVERS) == set(TASK_NAMES)
    assert len(TASK_NAMES) >= 8


@pytest.mark.parametrize("task", TASK_NAMES)
def test_answers_are_right(task: str) -> None:
    """Each answer equals one computed from the prompt alone in another way, and ends the solution."""
    for question in questions(task, split="test", count=60, seed=3):
        assert question.answer == SOLVERS[task](question.prompt), question
        assert question.solution.endswith(f">{question.answer}")
        assert question.solution.count(">") == 1
        assert question.prompt.index("\n") == len(question.prompt) - 1


@pytest.mark.parametrize("task", TASK_NAMES)
def test_splits_are_disjoint(task: str) -> None:
    """None of 500 test prompts is among 10 000 train prompts, whatever the seeds."""
    test = {question.prompt for question in questions(task, split="test", count=500, seed=0)}
    train = {question.prompt for question in questions(task, split="train", count=10_000, seed=20)}
    assert (len(test), len(train)) == (500, 10_000)
    assert not test & train


def test_english_splits_are_disjoint() -> None:
    """No held-out passage is a training passage."""
    assert not set(english(split="test", count=300)) & set(english(split="train", count=5_000, seed=20))


@pytest.mark.parametrize("task", TASK_NAMES)
def test_lengths(task: str) -> None:
    """Solutions are long enough to need several steps and short enough to decode in 96 tokens."""
    lengths = [len(question.solution) for question in questions(task, split="test", count=300)]
    assert 12 <= sum(lengths) / len(lengths) <= 48
    assert max(lengths) <= 80


@pytest.mark.parametrize("task", TASK_NAMES)
def test_seed_decides(task: str) -> None:
    """The same seed gives the same questions, also as a prefix of more; another seed gives others."""
    first = questions(task, split="train", count=20, seed=1)
    assert first == questions(task, split="train", count=40, seed=1)[:20]
    assert first != questions(task, split="train", count=20, seed=2)


def test_questions_are_the_same_on_every_machine() -> None:
    """A change of a generator shows here: the bundled model was trained on these."""
    question = questions("addition", split="test", count=1, seed=0)[0]
    assert (question.prompt, question.solution) == PINNED


PINNED = ("add 2968+48797\n", "87=15 69=16 97=17 28=11 04=05>51765")


@pytest.mark.parametrize("task", TASK_NAMES)
def test_is_right(task: str) -> None:
    """Only the exact answer after the last mark counts; steps before it do not matter."""
    question = questions(task, split="test", count=1)[0]
    assert question.is_right(question.solution)
    assert question.is_right(f"{question.solution}\n")
    assert question.is_right(f"nonsense>{question.answer}")
    assert not question.is_right(question.answer)
    assert not question.is_right("")
    assert not question.is_right(f"{question.solution}0")
    assert not question.is_right(question.solution[:-1])
    assert not question.is_right(f"{question.solution}>")


def test_mixed_is_interleaved() -> None:
    """Each run of as many questions as there are tasks has one of each."""
    made = mixed(split="test", per_task=3)
    assert [question.task for question in made] == list(TASK_NAMES) * 3
    assert len({question.prompt for question in made}) == len(made)


def test_calibration_texts_are_of_the_train_split() -> None:
    """Every eighth text is English, the others are whole worked questions, none from the test split."""
    texts = calibration_texts(count=80, seed=5)
    assert len(texts) == len(set(texts)) == 80
    questions_only = [text for index, text in enumerate(texts) if index % 8 != 7]
    for text in questions_only:
        prompt, _, solution = text.partition("\n")
        assert ">" in solution
        assert tasks.split_of(f"{prompt}\n") == "train"
    for text in texts[7::8]:
        assert "\n" not in text
        assert tasks.split_of(text) == "train"


def test_unknown_task_names_the_nearest() -> None:
    """The text of the error helps."""
    with pytest.raises(ValueError, match=r"'adition': did you mean 'addition'\? valid are add"):
        questions("adition", split="test", count=1)


def test_bad_split_and_count() -> None:
    """A split that does not exist and impossible counts are refused."""
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        questions("story", split="dev", count=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        questions("story", split="test", count=-1)


def test_an_exhausted_task_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for more than a task holds ends, with the number it could give."""
    only = Question("addition", "add 1+1\n", "02>2", "2")
    monkeypatch.setitem(tasks._MAKERS, "addition", lambda _rng: only)
    split = tasks.split_of(only.prompt)
    with pytest.raises(
        ValueError, match=rf"addition has fewer than 2 distinct {split} items; ask for at most 1"
    ):
        questions("addition", split=split, count=2)


def test_question_is_immutable() -> None:
    """Questions can be shared."""
    question = Question("addition", "add 1+1\n", "02>2", "2")
    with pytest.raises(AttributeError):
        question.answer = "3"  # type: ignore[misc]


_FOUND = re.compile(r"In the \w+ (\w+) (?:found|bought|picked up|saw and took) an? \w+ (\w+)")


def test_passages_are_consistent() -> None:
    """A thing is only given by somebody who holds it."""
    for passage in english(split="test", count=200):
        holder: dict[str, str] = {}
        for sentence in passage.split(". "):
            if found := _FOUND.match(sentence):
                holder[found[2]] = found[1]
            if given := re.match(r"(\w+) (?:gave|handed|lent) the (\w+) to (\w+),", sentence):
                assert holder[given[2]] == given[1], passage
                holder[given[2]] = given[3]
