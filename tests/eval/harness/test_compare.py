"""Two settings' samples compared question by question."""

from __future__ import annotations

from typing import Any

import pytest

from sere.eval.harness.compare import compare_tasks, meaning, task_results
from sere.eval.harness.run import why_nothing
from sere.eval.statistics.by_prompt import mean_per_token
from sere.eval.statistics.by_question import paired_difference


def results(values: list[Any], metric: str = "acc") -> dict[str, Any]:
    """What lm-eval returns for one task, its questions in another order."""
    samples = [
        {"doc_id": index, "filter": "none", "metrics": [metric], metric: value}
        for index, value in enumerate(values)
    ]
    return {"samples": {"t": samples[::-1]}, "results": {"t": {f"{metric},none": 0.5}}}


def case(
    setting: str, values: list[Any], why: str | None = None, metric: str = "acc", size: int = 4
) -> dict[str, Any]:
    tasks = task_results(results(values, metric), {"t": "multiple_choice"})
    requests = {"loglikelihood": {"experts": {}, "nothing_changed": why}}
    return {"setting": setting, "batch_size": size, "requests": requests, "tasks": tasks}


def compared(after: list[Any], before: list[Any], why: str | None = None, metric: str = "acc") -> Any:
    cases = compare_tasks([case("off", before, metric=metric), case("topk", after, why, metric)])
    assert cases[0]["tasks"]["t"]["metrics"][f"{metric},none"]["difference"] is None
    return cases[1]["tasks"]["t"]["metrics"][f"{metric},none"]


def test_right_and_wrong_answers_are_paired() -> None:
    """The difference is Newcombe's, whatever type lm-eval's values have, in the order of the questions."""
    found = compared([1.0, False, 0, 1], [True, 1.0, 1, 1])
    expected = paired_difference([True, False, False, True], [True] * 4)
    assert found["values"] == [1, 0, 0, 1]
    assert found["difference"] == {"value": expected.value, "low": expected.low, "high": expected.high}


def test_each_batch_size_has_an_off_of_its_own() -> None:
    """Off's answers may differ between sizes: a difference is from those at the same one."""
    settings = [("off", [1, 1, 1, 1], 8), ("topk", [1, 1, 0, 0], 8), ("off", [1, 0, 0, 0], 16)]
    given = [case(name, values, size=size) for name, values, size in [*settings, ("topk", [1, 1, 0, 0], 16)]]
    found = [one["tasks"]["t"]["metrics"]["acc,none"]["difference"] for one in compare_tasks(given)]
    assert (found[0], found[2]) == (None, None)
    assert [found[1]["value"], found[3]["value"]] == pytest.approx([-0.5, 0.25])


def test_other_numbers_are_paired_by_their_differences() -> None:
    """Student's t over questions."""
    found = compared([0.5, 0.25, 0.75], [0.5, 0.5, 0.5])
    expected = mean_per_token([0.0, -0.25, 0.25], [1, 1, 1])
    assert (found["difference"]["value"], found["difference"]["low"]) == (expected.value, expected.low)


def test_sums_have_weights() -> None:
    """Of a text's log-likelihood, what is lost per word."""
    found = compared([(-10.0, 4), (-7.0, 6)], [(-8.0, 4), (-5.0, 6)], metric="word_perplexity")
    assert found["difference"]["value"] == pytest.approx(-0.4)


def test_a_metric_is_right_or_wrong_in_all_cases_or_in_none() -> None:
    """A score between 0 and 1 that off happens to have as 0 and 1 alone is no share of right answers."""
    cases = compare_tasks([case("off", [0, 1, 1], metric="f1"), case("topk", [0.5, 1, 1], metric="f1")])
    off, topk = (one["tasks"]["t"]["metrics"]["f1,none"] for one in cases)
    assert (off["right_or_wrong"], topk["right_or_wrong"]) == (False, False)
    assert (off["interval"], topk["interval"]) == (None, None)
    assert topk["difference"]["value"] == pytest.approx(0.5 / 3)
    both = compare_tasks([case("off", [0, 1, 1]), case("topk", [0, 0, 1])])
    assert [one["tasks"]["t"]["metrics"]["acc,none"]["right_or_wrong"] for one in both] == [True, True]


@pytest.mark.parametrize(
    ("metric", "values", "better", "said"),
    [
        ("word_perplexity", [[-10.0, 4]], False, "log-likelihood per word; below 0 is worse"),
        ("bits_per_byte", [[-10.0, 4]], False, "log-likelihood per byte; below 0 is worse"),
        ("perplexity", [-2.5], False, "log-likelihood per question; below 0 is worse"),
        ("own", [[-10.0, 4]], None, "a question's sum per unit of its weight"),
        ("f1", [0.5], True, "mean of a question's value; below 0 is worse"),
        ("ter", [0.5], False, "mean of a question's value; above 0 is worse"),
        ("own", [0.5], None, None),
        ("acc", [1], True, None),
        ("toxic", [1], False, "share of the questions; above 0 is worse"),
    ],
)
def test_a_difference_has_a_unit_and_a_direction(
    metric: str, values: list[Any], better: bool | None, said: str | None
) -> None:
    """The value's direction is lm-eval's; a perplexity falls where its log-likelihood rises."""
    found = results(values, metric) | {"higher_is_better": {"t": {metric: better}}}
    task = task_results(found, {"t": "multiple_choice"})
    one = {"setting": "off", "batch_size": 4, "requests": {"loglikelihood": {"nothing_changed": None}}}
    (done,) = compare_tasks([one | {"tasks": task}])
    assert meaning(f"{metric},none", done["tasks"]["t"]["metrics"][f"{metric},none"]) == said


def test_what_is_no_number_has_no_difference() -> None:
    """Such as the lists of a corpus metric."""
    assert compared([["a"], ["b"]], [["a"], ["c"]])["difference"] is None


def test_nothing_re_routed_is_no_difference_of_zero() -> None:
    """Equal values say nothing there."""
    assert compared([1, 0], [1, 0], why="nothing was re-routed: why")["difference"] is None
    assert compared([1, 0], [1, 0])["difference"]["value"] == 0


def test_a_run_in_which_nothing_happened_says_why() -> None:
    """One case that re-routed is enough; off alone was not meant to."""
    idle, good, off = case("topk", [1], "idle"), case("topk", [1]), case("off", [1])
    assert why_nothing({"cases": [off, idle]}) == "idle"
    assert why_nothing({"cases": [off, idle, good]}) is None
    assert why_nothing({"cases": [off]}) is None


def test_the_questions_have_a_digest() -> None:
    """Of question, prompt and answer, in their order; the same under every filter; None without hashes."""

    def digest(*hashes: tuple[str, str, str]) -> str | None:
        found = results([1.0, 0.0])
        rows = found["samples"]["t"]
        names = ("doc_hash", "prompt_hash", "target_hash")
        for row in rows if hashes else []:
            row |= dict(zip(names, hashes[row["doc_id"]], strict=True))
        twice = [*rows, *(row | {"filter": "strict"} for row in rows)]
        (task,) = task_results(found | {"samples": {"t": twice}}, {"t": "multiple_choice"}).values()
        return task["questions_digest"]

    first, second = ("a", "b", "c"), ("d", "e", "f")
    assert digest() is None
    assert digest(first, second) == digest(first, second)
    others = [(second, first), *((first, (*second[:i], "x", *second[i + 1 :])) for i in range(3))]
    assert len({digest(first, second), *(digest(*one) for one in others)}) == 5


def test_a_task_has_its_version() -> None:
    """None where its file names none: lm-eval then says its own default."""
    for said, version in ({"t": 1.0}, 1.0), ({"t": "Yaml"}, None), ({}, None):
        (task,) = task_results(results([1.0]) | {"versions": said}, {"t": "multiple_choice"}).values()
        assert task["version"] == version
