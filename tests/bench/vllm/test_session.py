"""Engines that are timed step by step: what they run and count, not how fast."""

from __future__ import annotations

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.support.vllm.models import save_model, table_of

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.bench.vllm.engine_loads import EngineLoad, Request, decoding
from sere.bench.vllm.engine_process import EngineStart, engine_process
from sere.bench.vllm.replay import record_routing, replayed
from sere.bench.vllm.session import EngineSession
from sere.cli import main
from sere.engines.in_process import state_of
from sere.errors import EngineFailure, InputError
from sere.integrations.vllm import read_stats
from sere.policies.spec import parse_specs
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_ways_to_run_an_engine(tmp_path: Path, compiled: bool) -> None:
    """Off, S = 1 and its replay side by side; what is counted is what was asked for.

    With S = K compiled code calls no Python of sere: there is nothing to replay.
    """
    labels = ["sere:select_top_k=1,active_experts=0", "sere:select_top_k=4"]
    load = decoding(6, 8, 6)
    options = {"enforce_eager": not compiled, "async_scheduling": False}
    with engine(save_model(tmp_path), {"select_top_k": 1, "flatten": "on"}, **options) as llm:
        session = EngineSession(llm, parse_specs(labels))
        described = session.describe()
        replayed = [labels[0]] if compiled else labels
        ways = [way for label in labels for way in (label, *[f"replay {label}"] * (label in replayed))]
        assert session.open(load) == ["off", *ways]
        counts = {label: session.count(label) for label in session.open(load)}
        blocks = {label: session.block(label) for label in counts}
        session.warm("off")
    assert (described["subject"]["moe_layers"], described["subject"]["expert_kernel"]) == (
        2,
        "CPUUnquantizedExperts",
    )
    assert described["provenance"]["machine"]["threads"] == torch.get_num_threads()
    assert counts["off"]["experts"]["distinct_after"] == counts["off"]["experts"]["distinct_before"] > 8
    assert counts[labels[0]]["experts"]["distinct_after"] < 8
    assert counts[labels[0]]["overhead"]["us_per_layer"] > 0
    assert counts["off"]["overhead"] is counts[f"replay {labels[0]}"]["experts"] is None
    assert "select_top_k=4 keeps all 4 slots of a token" in counts[labels[1]]["nothing_changed"]
    assert counts[labels[0]]["nothing_changed"] is None
    on, replay = counts[labels[0]], counts[f"replay {labels[0]}"]
    assert on["replayed"] is None
    assert replay["replayed"]["routings"] >= replay["replayed"]["pairs"] > 0
    assert replay["flattening"] == on["flattening"]
    assert 0 < on["flattening"]["pairs"] < on["flattening"]["slots"]
    for block in blocks.values():
        assert (len(block.ttft_ms), len(block.step_ms)) == (6, 6)
        assert block.total_ms > sum(block.step_ms) > 0


def test_loads_of_an_engine(tmp_path: Path) -> None:
    """Requests arrive before the step that they name, and each has its own time to the first token.

    What flattening costs was measured at the start, for the one kind of layer that there is.
    Three that come one after another never decode together; too many at once are refused by name.
    """
    one_by_one = EngineLoad("one by one", "ttft", tuple(Request(3 * index, 8, 2) for index in range(3)))
    mixed = EngineLoad("mixed", "total", (Request(0, 8, 6), Request(2, 8, 2)))
    options = {"async_scheduling": False, "max_num_seqs": 2}
    with engine(save_model(tmp_path), {"select_top_k": 1}, **options) as llm:
        session = EngineSession(llm, parse_specs([]))
        session.open(one_by_one)
        block = session.block("off")
        assert len(block.ttft_ms) == 3
        (kind,) = read_stats(llm).flattening.break_even
        assert kind.startswith("16 experts, 4 slots per row, ")
        assert "(CPUUnquantizedExperts, bfloat16, weights bfloat16 [16, " in kind
        assert len(block.values("ttft")) == 1
        rows = session.count("off")["experts"]
        assert rows["distinct_before"] == 4
        session.open(mixed)
        block = session.block("off")
        assert block.values("total") == [block.total_ms]
        # Six tokens take six steps; the first step only reads the prompt.
        assert (len(block.ttft_ms), len(block.step_ms)) == (2, 5)
        session.open(decoding(3, 8, 4))
        with pytest.raises(InputError, match="3 requests did not all run at once"):
            session.block("off")


def test_controls(tmp_path: Path) -> None:
    """Controls take turns with off in an eager engine; each runs its own experts and has no replay."""
    labels = ["topk:select_top_k=1", "random:select_top_k=1,active_experts=0"]
    with engine(save_model(tmp_path), {"select_top_k": 1}, async_scheduling=False) as llm:
        session = EngineSession(llm, parse_specs(labels))
        assert session.open(decoding(6, 8, 6)) == ["off", *labels]
        for label in labels:
            counts = session.count(label)
            assert counts["experts"]["distinct_after"] <= 6 < counts["experts"]["distinct_before"]
            assert counts["overhead"]["us_per_layer"] > 0


def forbidden(*_: object) -> NoReturn:
    raise AssertionError("pairs were searched in a replay")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_replay(tmp_path: Path, compiled: bool) -> None:
    """Recorded ids and pairs give the tokens that they were recorded with; neither is computed."""
    options = {"enforce_eager": not compiled, "async_scheduling": False}
    with engine(save_model(tmp_path), {"select_top_k": 1, "flatten": "on"}, **options) as llm:
        expected = generate(llm, prompts())
        recording = record_routing(llm, lambda: generate(llm, prompts()))
        flattened = read_stats(llm, reset=True).flattening.steps // 2
        assert len(recording.pairs) == flattened > 0
        for layer in state_of(llm).layers.values():
            layer.flat.find = forbidden
        for _ in range(2):
            with replayed(llm, recording):
                assert generate(llm, prompts()) == expected
        assert read_stats(llm).layers[0].steps == 0
        assert read_stats(llm).flattening.steps == 2 * flattened


def test_a_vanilla_engine_and_the_end_of_its_process(tmp_path: Path) -> None:
    """An engine without sere runs one way; a process that is killed is an error with its log; none stays."""
    path = save_model(tmp_path)
    options = {
        "skip_tokenizer_init": True, "dtype": "bfloat16", "enforce_eager": True, "max_model_len": 64,
        "max_num_seqs": 4, "seed": 0, "enable_prefix_caching": False, "async_scheduling": False,
    }  # fmt: skip
    how = EngineStart(model=path, sere=None, settings=(), options=options, threads=1)
    with engine_process(how, tmp_path / "log") as session:
        assert session.describe()["subject"] == {}
        assert session.open(decoding(2, 4, 3)) == ["vanilla"]
        assert len(session.block("vanilla").step_ms) == 3
        assert session.count("vanilla")["experts"] is None
        session.open(decoding(5, 4, 3))
        with pytest.raises(InputError, match="5 requests did not all run at once"):
            session.block("vanilla")
        session.open(decoding(2, 4, 3))
        assert "sere" not in (tmp_path / "log").read_text().replace(str(tmp_path), "")
        os.killpg(session.pid, signal.SIGKILL)
        with pytest.raises(EngineFailure, match=r"process ended with code -9; the end of its log"):
            session.block("vanilla")


def test_a_start_that_fails_says_what_vllm_says(tmp_path: Path) -> None:
    """The reason of vLLM itself is in the error, not only that the process has ended."""
    path = save_model(tmp_path)
    how = EngineStart(
        model=path, sere={"table": str(table_of(path))}, settings=parse_specs([]),
        options={"skip_tokenizer_init": True, "max_model_len": 100_000},
    )  # fmt: skip
    with (
        pytest.raises(EngineFailure, match=r"vLLM .* did not start: .*max_model_len"),
        engine_process(how, tmp_path / "log"),
    ):
        pass


def test_bench_of_engines_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings of two engines and a vanilla one; an engine that vLLM refuses is named, with exit code 2."""
    out = tmp_path / "out.jsonl"
    command = ["bench", "serve", "--preset", "tiny", "--layers", "1", "--batch-size", "6", "--prompt", "8"]
    command += ["--steps", "4", "--rounds", "1", "--vanilla", "--no-replay", "--out", str(out)]
    page = tmp_path / "page.html"
    report = [] if find_spec("plotly") is None else ["--report", str(page)]
    assert main([*command, *report, "--setting", "sere:active_experts=0"]) == 0
    assert {*tmp_path.iterdir()} == ({out, page} if report else {out})
    records = {record["setting"]: record for record in map(json.loads, out.read_text().splitlines())}
    assert [*records] == ["off", "sere:active_experts=0", "vanilla"]
    on: dict[str, Any] = records["sere:active_experts=0"]
    assert on["experts"]["distinct_after"] < on["experts"]["distinct_before"]
    per_expert = on["subject"]["bytes_per_expert"]
    assert on["expert_bytes_per_step"] == round(on["experts"]["distinct_after"] * per_expert)
    assert records["vanilla"]["speedup_over_vanilla"] == {"p20": 1, "p50": 1, "p80": 1}
    capsys.readouterr()
    assert main([*command, "--engine-option", "max-num-sequences=3"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "has no engine option 'max_num_sequences'" in said[-1]
    pytest.importorskip("plotly", reason="needs plotly: make test-vllm")
    shown = page.read_text(encoding="utf-8")
    assert "Speed: time per output token" in shown
    assert all(f">{setting}<" in shown for setting in records)
