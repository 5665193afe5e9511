"""Evaluating on vLLM, without an engine: which settings share one, and in what order engines come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from sere.bench.target import random_table
from sere.defaults import TABLE
from sere.engines.settings import by_engine
from sere.eval import vllm
from sere.eval.digests import files_digest
from sere.eval.plan import QuestionPlan
from sere.eval.questions import held_out
from sere.eval.user_questions import FileQuestion
from sere.policies.spec import parse_specs
from sere.texts import Row
from tests.support.checkpoints import tiny_tokenizer
from tests.support.tiny import tiny_model


def groups(*texts: str) -> list[tuple[dict[str, Any], list[str]]]:
    found = by_engine(parse_specs(texts))
    return [(options, [setting.label for setting in settings]) for options, settings in found]


def test_settings_that_differ_in_more_than_s_rho_and_m_need_another_engine() -> None:
    """S, ρ and M change while an engine runs; each other choice is part of an engine's start."""
    scaled = [f"sere:select_top_k={rest},use_scale=true" for rest in ("2", "2,threshold=0.3")]
    capped = [f"sere:select_top_k={S},active_experts=8,cap=true" for S in (2, 4)]
    plain = ["sere:select_top_k=2", "sere:active_experts=8", "sere:tier=fast"]
    assert groups(scaled[0], capped[0], scaled[1], capped[1], *plain) == [
        ({"use_scale": True}, ["off", *scaled]),
        ({"cap": True}, capped),
        ({}, plain),
    ]


def test_the_published_method_starts_an_engine_without_factors() -> None:
    """The preset stands for values; those that an engine cannot change are part of its start."""
    paper = [f"sere:paper,select_top_k={S}" for S in (2, 4)]
    ((options, labels),) = groups(*paper)
    assert options == {"use_scale": False}
    assert len(labels) == 3


def test_controls_need_no_engine_of_their_own() -> None:
    """Other settings than ``sere`` run in the first engine, whatever it was started with."""
    controls = ["random:select_top_k=1,active_experts=8", "topk:select_top_k=1"]
    assert groups(*controls) == [({}, ["off", *controls])]
    assert groups(*controls, "sere:select_top_k=2,use_scale=true", "sere:select_top_k=2") == [
        ({"use_scale": True}, ["off", *controls, "sere:select_top_k=2,use_scale=true"]),
        ({}, ["sere:select_top_k=2"]),
    ]


class Engines:
    """Stands in for vLLM: says which engines were started, and that there is one at a time."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.running = 0

    @contextmanager
    def __call__(self, options: Mapping[str, Any]) -> Iterator[object]:
        """Start one, and end it."""
        assert not self.running
        self.started.append(dict(options))
        self.running += 1
        try:
            yield object()
        finally:
            self.running -= 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that were measured; in each, only the first question is right."""
    names: list[str] = []

    def measure(run: Any, _llm: object, setting: Any, B: int) -> dict[str, Any]:
        with run.progress(f"B={B} {setting.label}", 1):
            names.append(f"B={B} {setting.label}")
        right = "1" + "0" * (len(run.plan.questions) - 1)
        return {"setting": setting.label, "batch_size": B, "right": right}

    monkeypatch.setattr(vllm._Run, "measure", measure)
    return names


def evaluate(engines: Engines, **options: Any) -> dict[str, Any]:
    plan = QuestionPlan(
        settings=parse_specs(
            [
                "sere:select_top_k=1,targets=active",
                "sere:select_top_k=1",
                "sere:select_top_k=2,targets=active",
            ]
        ),
        batch_sizes=[1, 8],
        questions=held_out(2, tasks=["addition"]),
    )
    table = random_table(tiny_model("qwen3_moe"))
    return vllm.evaluate_engine(engines, tiny_tokenizer(), plan, table=table, dtype="float32", **options)


def test_off_is_measured_once_and_paired_with_all(measured: list[str]) -> None:
    """Two engines one after the other; the record's order is the plan's, by batch size."""
    engines = Engines()
    record = evaluate(engines)
    assert engines.started == [{"targets": "active"}, {}]
    labels = [
        "off",
        "sere:select_top_k=1,targets=active",
        "sere:select_top_k=1",
        "sere:select_top_k=2,targets=active",
    ]
    order = [f"B={B} {label}" for B in (1, 8) for label in labels]
    assert sorted(measured) == sorted(order)
    assert [f"B={case['batch_size']} {case['setting']}" for case in record["cases"]] == order
    for case in record["cases"]:
        assert ("difference" in case["tasks"]["all"]) == (case["setting"] != "off")
    assert record["model"]["dtype"] == "float32"


def test_an_interrupted_run_starts_only_the_engines_that_it_still_needs(
    measured: list[str], tmp_path: Path
) -> None:
    """What was finished is taken over, unless the weights are others."""
    path, engines = tmp_path / "partial.json", Engines()

    def progress(name: str, _total: int) -> AbstractContextManager[Any]:
        if name == "B=8 sere:select_top_k=1" and len(engines.started) == 2:
            raise KeyboardInterrupt
        return nullcontext(lambda: None)

    with pytest.raises(KeyboardInterrupt):
        evaluate(engines, checkpoint=path, progress=progress)
    assert not engines.running
    before = path.read_text()
    evaluate(engines, checkpoint=path, progress=progress)
    assert engines.started == [{"targets": "active"}, {}, {}]
    assert len(measured) == 8
    assert not path.exists()

    path.write_text(before)
    evaluate(Engines(), checkpoint=path, weights="others")
    assert len(measured) == 16


def test_folders_with_other_files_have_other_digests(tmp_path: Path) -> None:
    """A model that was written again is not the one whose cases were kept."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = files_digest(tmp_path)
    assert files_digest(tmp_path) == first
    (tmp_path / TABLE).write_bytes(b"a table is told apart by its own fingerprint")
    assert files_digest(tmp_path) == first
    file.write_bytes(b"three")
    assert files_digest(tmp_path) != first


def test_questions_of_a_file_run_on_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put to an engine by the chat template as to a model, and the record names their file."""
    asked: list[list[str]] = []
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "<u>{{ messages[0]['content'] }}<a>"

    def measure(run: Any, _llm: object, setting: Any, B: int) -> dict[str, Any]:
        asked.append([tokenizer.decode(ids) for ids in run.prompts])
        return {"setting": setting.label, "batch_size": B, "right": "10"}

    monkeypatch.setattr(vllm._Run, "measure", measure)
    plan = QuestionPlan(
        settings=parse_specs([]),
        batch_sizes=[2],
        questions=[FileQuestion(Row("line 1", "one"), "1"), FileQuestion(Row("line 2", "two"), "2")],
        chat_template=True,
        source={"file": "q.jsonl", "count": 2, "skipped": 0},
    )
    table = random_table(tiny_model("qwen3_moe"))
    record = vllm.evaluate_engine(Engines(), tokenizer, plan, table=table, dtype="float32")
    assert asked == [["<u>one<a>", "<u>two<a>"]]
    assert record["plan"]["source"]["file"] == "q.jsonl"
    assert record["plan"]["chat_template"] is True
    assert record["cases"][0]["tasks"]["questions"]["right"] == 1
