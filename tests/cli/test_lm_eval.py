"""``sere lm-eval``: what it prints, keeps and refuses."""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sere.cli import main
from sere.report.collect import collect
from sere.report.read import read_sources
from tests.support.commands import refused, run_text

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval: make test-vllm")
pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("default")]

FEW = ("--per-task", "4", "--batch-size", "2", "--dtype", "float32")
ONE = "topk:select_top_k=1"


@needs_lm_eval
def test_scoring_in_decode_steps(
    tiny_bundled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off comes first, the difference is paired, each question's value is kept, and a report shows it."""
    out, page = tmp_path / "record.json", tmp_path / "page.html"
    report = [] if find_spec("plotly") is None else ["--report", page]
    # Outside of a repository.
    monkeypatch.chdir(tmp_path)
    text, notes = run_text(
        capfd, "lm-eval", tiny_bundled, "--tasks", "sere_sorting_choice", "--phases", "decode", *FEW,
        "--setting", ONE, "--out", out, *report,
    )  # fmt: skip
    assert "sere_sorting_choice" in text
    assert "vs off" in text
    assert f"wrote {out}" in notes
    assert "warning" not in notes
    assert "not a git repository" not in notes
    record = json.loads(out.read_text())
    off, one = record["cases"]
    assert (off["setting"], one["setting"]) == ("off", ONE)
    (found,) = one["tasks"].values()
    assert found["n"] == len(found["metrics"]["acc,none"]["values"]) == 4
    assert (found["version"], record["plan"]["lm_eval"]) == (1.0, version("lm_eval"))
    assert found["questions_digest"] == off["tasks"]["sere_sorting_choice"]["questions_digest"] is not None
    assert found["metrics"]["acc,none"]["difference"] is not None
    assert one["requests"]["loglikelihood"]["experts"]["slots_rerouted"] > 0
    shown = {score.setting: score for score in collect(read_sources([out])).scores}
    assert (shown["off"].rerouted, shown["off"].count) == (0, 4)
    assert (shown[ONE].task, shown[ONE].metric, shown[ONE].difference is None) == (
        *one["tasks"],
        "acc",
        False,
    )
    assert not list(tmp_path.glob(".*.partial"))
    if report:
        assert f"wrote {page}" in notes
        assert "sere_sorting_choice, 4 questions" in page.read_text(encoding="utf-8")


@needs_lm_eval
def test_two_batch_sizes(tiny_bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off comes first at each, with the same questions, and a difference is from off at the same size."""
    out = tmp_path / "record.json"
    text, _ = run_text(
        capsys, "lm-eval", tiny_bundled, "--tasks", "sere_sorting_choice", "--phases", "decode", *FEW,
        "--batch-size", "3", "2", "--setting", ONE, "--out", out,
    )  # fmt: skip
    record = json.loads(out.read_text())
    assert record["plan"]["batch_sizes"] == [3, 2]
    cases = record["cases"]
    order = [(3, "off"), (3, ONE), (2, "off"), (2, ONE)]
    assert [(case["batch_size"], case["setting"]) for case in cases] == order
    tasks = [case["tasks"]["sere_sorting_choice"] for case in cases]
    assert len({task["questions_digest"] for task in tasks} - {None}) == 1
    found = [task["metrics"]["acc,none"] for task in tasks]
    assert [metric["difference"] is None for metric in found] == [True, False, True, False]
    for off, one in (found[:2], found[2:]):
        assert one["difference"]["value"] == pytest.approx(one["value"] - off["value"])
    experts = [case["requests"]["loglikelihood"]["experts"] for case in cases]
    assert [one["slots_rerouted"] > 0 for one in experts] == [False, True, False, True]
    # More rows of a step choose more experts: each size was decoded, not one of them twice.
    assert experts[0]["distinct_before"] > experts[2]["distinct_before"]
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines if "sere_sorting_choice" in line] == ["3", "3", "2", "2"]


@needs_lm_eval
@pytest.mark.skipif(find_spec("plotly") is None, reason="needs plotly, the extra report")
def test_a_page_that_cannot_be_written_stops_before_the_work(
    tiny_bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No task was looked up yet."""
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    line = refused(
        capsys, "lm-eval", tiny_bundled, "--tasks", "none_such", "--setting", ONE, "--report", notes
    )  # fmt: skip
    assert "expected an HTML page or no file" in line


@needs_lm_eval
def test_prefill_is_refused(tiny_bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log-likelihood task without decode steps is wrong use: code 2, and how to do it."""
    line = refused(capsys, "lm-eval", tiny_bundled, "--tasks", "sere_choice", "--setting", ONE)
    assert "log-likelihood tasks are scored in prefill, where nothing is re-routed" in line
    assert "give --phases decode" in line


@needs_lm_eval
def test_a_run_in_which_nothing_was_re_routed(tiny_bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One warning at the end, and no difference of 0."""
    text, notes = run_text(
        capsys, "lm-eval", tiny_bundled, "--tasks", "sere_sorting_choice", "--phases", "decode", *FEW,
        "--setting", "topk:select_top_k=4",
    )  # fmt: skip
    assert notes.count("in no decode step of this run was anything re-routed") == 1
    assert "+0.0" not in text
    assert "B=2 topk:select_top_k=4: nothing was re-routed" in text


@needs_lm_eval
def test_an_interrupted_run_continues(
    tiny_bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command runs only what is missing."""
    import sere.eval.harness.run as module

    out = tmp_path / "record.json"
    argv = [
        "lm-eval", str(tiny_bundled), "--tasks", "sere_sorting_choice", "--phases", "decode", *FEW,
        "--setting", ONE, "--out", str(out),
    ]  # fmt: skip
    own, runs = module.task_results, []

    def failing(*args: Any) -> Any:
        runs.append(len(runs))
        if len(runs) == 2:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(module, "task_results", failing)
    assert main(argv) == 130
    assert "finished cases: 1" in capsys.readouterr().err
    assert main(argv) == 0
    assert len(runs) == 3
    assert len(json.loads(out.read_text())["cases"]) == 2


@needs_lm_eval
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("--tasks", "sere_additio"), "lm-eval has no task 'sere_additio'; did you mean 'sere_addition'?"),
        (("--tasks", "sere_sorting", "--phases", "decode"), "sere_sorting generates text"),
        (("--tasks", "sere_sorting", "--setting", "topq"), "unknown policy 'topq'"),
    ],
)
def test_wrong_use(
    tiny_bundled: Path, folder: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], text: str
) -> None:
    """One line that says what to give instead."""
    setting = () if "--setting" in given else ("--setting", ONE)
    assert text in refused(capsys, "lm-eval", tiny_bundled, "--include-path", folder, *given, *setting)


@needs_lm_eval
def test_own_tasks_need_their_tokenizer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other models do not know the notation."""
    line = refused(capsys, "lm-eval", checkpoint, "--tasks", "sere_sorting", "--setting", ONE)
    assert "need the bundled model's tokenizer" in line


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("dtype=half",), "--engine-option dtype: sere lm-eval sets it itself; use --dtype"),
        (("tensor_parallel_size=2",), "runs sere and off only, got topk:select_top_k=1"),
    ],
    ids=["fixed", "several processes"],
)
def test_options_that_an_engine_does_not_take(
    tiny_bundled: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], text: str
) -> None:
    """Before anything else is looked at."""
    options = [word for one in given for word in ("--engine-option", one)]
    command = ("lm-eval", tiny_bundled, "--tasks", "sere_sorting", "--setting", "topk:select_top_k=1")
    assert text in refused(capsys, *command, "--engine", "vllm", *options)


@pytest.mark.parametrize(
    "option",
    ["speculative_config={}", "data_parallel_size=2", "logits_processors=[]", "logprobs_mode=raw_logits"],
)
def test_options_that_scoring_in_decode_steps_does_not_take(
    tiny_bundled: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """By name: tokens that are given are neither drafted nor sent to several replicas."""
    line = refused(
        capsys, "lm-eval", tiny_bundled, "--tasks", "sere_choice", "--phases", "decode", "--setting", ONE,
        "--engine", "vllm", "--engine-option", option,
    )  # fmt: skip
    assert f"--engine-option {option.partition('=')[0]}: sere lm-eval sets it itself; " in line


def test_without_lm_eval(
    tiny_bundled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install, in one line."""
    monkeypatch.setattr("sere.eval.harness.plan.installed_version", lambda _: None)
    assert "pip install '.[lm-eval]'" in refused(
        capsys, "lm-eval", tiny_bundled, "--tasks", "sere_sorting", "--setting", ONE
    )
    monkeypatch.setattr("sere.eval.harness.plan.installed_version", lambda _: "0.4.9")
    line = refused(capsys, "lm-eval", tiny_bundled, "--tasks", "sere_sorting", "--setting", ONE)
    assert "lm-eval 0.4.9: expected 0.4.13 or newer" in line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with tasks of the user."""
    from sere.eval.harness.tasks import write_tasks

    write_tasks(tmp_path / "tasks", tasks=["sorting", "addition"], per_task=4)
    return tmp_path / "tasks"


@needs_lm_eval
def test_a_model_type_that_only_vllm_knows_reaches_its_engine(
    only_in_vllm: list[str | Path], not_started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """``auto`` is left to vLLM."""
    line = refused(capsys, "lm-eval", *only_in_vllm, "--tasks", "sere_sorting")
    assert line.endswith("no engine in this test")
    assert [options["dtype"] for options in not_started] == ["auto"]
