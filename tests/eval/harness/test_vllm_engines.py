"""lm-eval on real vLLM engines: the documented line for its own command, and ``sere lm-eval``."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytest.importorskip("lm_eval", reason="needs lm-eval: make test-vllm")

from sere.cli import main
from sere.engines import in_process
from sere.engines.forced_tokens import PROCESSOR, ForcedTokens
from sere.engines.in_process import in_process_engine
from sere.engines.settings import routed
from sere.errors import ConfigError, UnsupportedEngine
from sere.eval.harness.__main__ import main as own_command
from sere.eval.harness.vllm import around_engine
from sere.policies.spec import parse_spec
from tests.support.documented import documented_line, with_values
from tests.support.vllm.engines import ENVIRONMENT, generate

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

FEW = {"select_top_k": 1, "active_experts": 0}


def test_the_line_for_lm_evals_own_command(vllm_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """As documented, with other values: ``additional_config`` reaches the engine, which says what it did."""
    (program, *words), arguments = documented_line("vllm")
    assert program == "lm_eval"
    assert {*arguments} == {"pretrained", "max_num_seqs", "additional_config"}
    assert {*arguments["additional_config"]["sere"]} == {"table"}
    sere = FEW | {"table": str(vllm_checkpoint.parent / "table.safetensors")}
    arguments |= {
        "pretrained": str(vllm_checkpoint), "dtype": "float32", "max_model_len": 256, "enforce_eager": True,
        "max_num_seqs": 4, "additional_config": {"sere": sere},
    }  # fmt: skip
    words = with_values(words, model_args=json.dumps(arguments), tasks="sere_reversal")
    # Where vLLM is its CPU build, lm-eval's own program stops.
    command = [
        sys.executable, "-m", "sere.eval.harness", *words, "--include_path", str(folder),
        "--output_path", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = run.stdout + run.stderr
    assert run.returncode == 0, log
    assert "|sere_reversal|" in run.stdout
    (written,) = tmp_path.rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["sere_reversal"]["sample_len"] == 6
    assert re.search(r"sere: [1-9]\d* steps re-routed", log), log


OPTIONS = {"max_model_len": 200}
# An engine each, one after the other; the last one goes on.
SIZES = (2, 4)
ONE, SERE = "topk:select_top_k=1", "sere:select_top_k=1,active_experts=0"


@dataclass(frozen=True)
class Run:
    """What ``sere lm-eval`` wrote, and the last engine that it started, which goes on.

    Attributes:
        record: The record.
        sizes: Most rows of each engine that was started, in order.
        llm: The last of them.
        path: The checkpoint.
    """

    record: Any
    sizes: list[int]
    llm: Any
    path: str

    def scored(self, setting: str, asked: list[Any], *, rows: int | None) -> list[tuple[float, bool]]:
        """The log-likelihoods of continuations, in prefill or in decode steps."""
        model = around_engine(self.llm, self.path, dtype="float32", rows=rows)
        with routed(self.llm, parse_spec(setting)):
            found: list[tuple[float, bool]] = model._loglikelihood_tokens(asked, disable_tqdm=True)
            return found


@pytest.fixture(scope="module")
def run(vllm_checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The command on tasks of both kinds, at two sizes, with one engine for each."""
    out = tmp_path_factory.mktemp("out") / "record.json"
    sizes: list[int] = []
    kept: list[Any] = []
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)

        @contextmanager
        def started(*given: Any, **options: Any) -> Iterator[Any]:
            sizes.append(options["max_num_seqs"])
            with ExitStack() as own:
                llm = own.enter_context(in_process_engine(*given, **options))
                if sizes[-1] == SIZES[-1]:
                    kept.append(llm)
                    stack.enter_context(own.pop_all())
                yield llm

        patch.setattr(in_process, "in_process_engine", started)
        argv = [
            "lm-eval", vllm_checkpoint, "--engine", "vllm", "--phases", "decode", "--include-path", folder,
            "--tasks", "sere_reversal", "sere_reversal_choice", "--dtype", "float32", "--batch-size", *SIZES,
            "--table", vllm_checkpoint.parent / "table.safetensors", "--setting", SERE, "--setting", ONE,
            *(f"--engine-option={name}={value}" for name, value in OPTIONS.items()), "--out", out,
        ]  # fmt: skip
        assert main([str(word) for word in argv]) == 0
        (llm,) = kept
        yield Run(json.loads(out.read_text()), sizes, llm, str(vllm_checkpoint))


def test_the_command(run: Run) -> None:
    """One engine per size, with the options given; at each size, off comes first."""
    assert run.record["model"]["engine_options"] == OPTIONS
    assert run.llm.llm_engine.vllm_config.model_config.max_model_len == OPTIONS["max_model_len"]
    assert run.sizes == [*SIZES]
    found = [(case["batch_size"], case["setting"]) for case in run.record["cases"]]
    assert found == [(size, setting) for size in SIZES for setting in ("off", SERE, ONE)]


@pytest.mark.parametrize("size", SIZES)
def test_each_kind_of_request_is_re_routed(run: Run, size: int) -> None:
    """At each size, and the differences from off are paired."""
    off, *others = (case for case in run.record["cases"] if case["batch_size"] == size)
    for kind, task in (("generate_until", "sere_reversal"), ("loglikelihood", "sere_reversal_choice")):
        for case in others:
            seen = case["requests"][kind]
            assert seen["nothing_changed"] is None
            assert seen["experts"]["distinct_after"] < seen["experts"]["distinct_before"]
            assert case["tasks"][task]["questions_digest"] == off["tasks"][task]["questions_digest"]
            (found,) = case["tasks"][task]["metrics"].values()
            (before,) = off["tasks"][task]["metrics"].values()
            assert found["difference"]["value"] == pytest.approx(found["value"] - before["value"])
        assert off["requests"][kind]["experts"]["slots_rerouted"] == 0


@pytest.fixture
def served(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """``sere-vllm`` takes the engine of `run`; returned is what it would have started another one with."""
    from sere.eval.harness import served_model

    asked: list[dict[str, Any]] = []

    @contextmanager
    def again(_: Any, sere: Any, **options: Any) -> Iterator[Any]:
        asked.append({"sere": sere, "ended": False} | options)
        yield run.llm
        asked[-1]["ended"] = True

    monkeypatch.setattr(served_model, "in_process_engine", again)
    return asked


@pytest.mark.usefixtures("_without_lm_evals_tasks")
def test_the_line_for_scoring_in_lm_evals_own_command(
    run: Run, served: list[dict[str, Any]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As documented, with other values: the numbers and counts are those of ``sere lm-eval``."""
    words, arguments = documented_line("sere-vllm")
    assert words[:3] == ["python", "-m", "sere.eval.harness"]
    assert arguments == {
        "pretrained": "MODEL", "sere": {"active_experts": 24}, "table": "similarity.sere", "phases": "decode",
    }  # fmt: skip
    table = str(Path(run.path).parent / "table.safetensors")
    arguments |= {"pretrained": run.path, "sere": FEW, "table": table, "dtype": "float32"} | OPTIONS
    words = with_values(
        words[3:], model_args=json.dumps(arguments), tasks="sere_reversal_choice", batch_size=str(SIZES[-1])
    )
    words += ["--include_path", str(folder), "--output_path", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    own_command()
    (written,) = tmp_path.rglob("results_*.json")
    results = json.loads(written.read_text())
    (expected,) = (
        case for case in run.record["cases"] if (case["batch_size"], case["setting"]) == (SIZES[-1], SERE)
    )
    (metric,) = expected["tasks"]["sere_reversal_choice"]["metrics"]
    value = expected["tasks"]["sere_reversal_choice"]["metrics"][metric]["value"]
    assert results["results"]["sere_reversal_choice"][metric] == value
    said = results["config"]["sere"]
    assert (said["setting"], said["phases"]) == (SERE, "decode")
    assert said["requests"]["loglikelihood"] == expected["requests"]["loglikelihood"]
    gc.collect()
    (engine,) = served
    assert engine["ended"]
    assert engine["sere"]["table"] == table
    assert (engine["max_num_seqs"], engine["logits_processors"]) == (SIZES[-1], [PROCESSOR])


@pytest.mark.usefixtures("served")
def test_prefill_is_refused_or_exact(run: Run) -> None:
    """In prefill a setting could show no loss; off is the unmodified model, and warns of nothing."""
    from sere.eval.harness.served_model import ServedLM

    table = str(Path(run.path).parent / "table.safetensors")
    asked = [SimpleNamespace(args=("sort 3 1 2", " > 1 2 3"), task_name=None)]
    options = {"table": table, "dtype": "float32", "batch_size": 4}
    with pytest.raises(
        ConfigError, match=r"topk:select_top_k=1 would have the result of off; give \"phases\""
    ):
        ServedLM(run.path, sere=ONE, **options).loglikelihood(asked, disable_tqdm=True)
    model = ServedLM(run.path, sere="off", **options)
    ((nats, _),) = model.loglikelihood(asked, disable_tqdm=True)
    assert nats < 0
    assert model.get_model_info()["sere"]["requests"]["loglikelihood"]["nothing_changed"] is None


def continuations(count: int) -> list[tuple[None, list[int], list[int]]]:
    """As lm-eval asks for them: contexts of 1 to 8 tokens and continuations of 1 to 6, with end tokens."""
    generator = Random(3)
    return [
        (
            None,
            [generator.randrange(1, 60) for _ in range(1 + i % 8)],
            [generator.choice((1, generator.randrange(1, 60))) for _ in range(1 + i % 6)],
        )
        for i in range(count)
    ]


def test_off_in_decode_steps_is_prefill(run: Run) -> None:
    """Up to rounding, whichever are the most likely tokens; an end token ends nothing."""
    asked = continuations(24)
    exact = run.scored("off", asked, rows=None)
    found = run.scored("off", asked, rows=4)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in exact], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in exact]


def test_the_models_own_continuation_is_greedy(run: Run) -> None:
    """And with another last token it is not."""
    prompt = [5, 9, 21]
    (own,) = generate(run.llm, [{"prompt_token_ids": prompt}], tokens=4)
    other = [*own[:-1], own[-1] % 50 + 1]
    found = run.scored("off", [(None, prompt, own), (None, prompt, other)], rows=2)
    assert [greedy for _, greedy in found] == [True, False]


def test_decode_steps_show_what_prefill_hides(run: Run) -> None:
    """With one expert left each likelihood changes, but for a single token that prefill predicts."""
    asked = [*continuations(24), (None, [7], [9])]
    exact = run.scored("off", asked, rows=4)
    hidden = run.scored(ONE, asked, rows=None)
    assert [nats for nats, _ in hidden] == pytest.approx([nats for nats, _ in exact], abs=1e-3)
    changed = run.scored(ONE, asked, rows=4)
    for (nats, _), (before, _), (_, context, tokens) in zip(changed, exact, asked, strict=True):
        if len(context) == len(tokens) == 1:
            assert nats == pytest.approx(before, abs=1e-5)
        else:
            assert abs(nats - before) > 1e-4


def test_windows_of_a_text(run: Run) -> None:
    """Texts longer than the longest are cut as in prefill."""
    texts = [SimpleNamespace(args=(text,)) for text in ("sort 3 1 2", "the mill stood by the river " * 3)]
    found = {}
    for rows in (None, 2):
        model = around_engine(run.llm, run.path, dtype="float32", rows=rows)
        model._max_length = 32
        with routed(run.llm, parse_spec("off")):
            found[rows] = model.loglikelihood_rolling(texts, disable_tqdm=True)
    assert found[2] == pytest.approx(found[None], abs=1e-3)


def test_an_engine_that_decodes_other_tokens_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it chose by itself is not what was asked."""
    monkeypatch.setattr(ForcedTokens, "apply", lambda _, logits, *_step: logits)
    with pytest.raises(UnsupportedEngine, match="expected the engine to decode the 3 tokens"):
        run.scored("off", [(None, [5, 6], [7, 8])], rows=2)


def test_scored_tasks_are_refused(
    vllm_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an engine starts."""
    argv = [
        "lm-eval", str(vllm_checkpoint), "--engine", "vllm", "--tasks", "sere_reversal_choice",
        "--include-path", str(folder), "--table", str(vllm_checkpoint.parent / "table.safetensors"),
    ]  # fmt: skip
    assert main(argv) == 2
    assert "give --phases decode" in capsys.readouterr().err
