"""lm-eval on real vLLM engines: the documented line for its own command, and ``sere lm-eval``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytest.importorskip("lm_eval", reason="needs lm-eval: make test-vllm")

from sere.cli import main
from sere.engines import in_process
from sere.engines.in_process import in_process_engine
from tests.support.commands import run_json
from tests.support.documented import documented_line, with_values
from tests.support.vllm.engines import ENVIRONMENT

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
    environment = os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = run.stdout + run.stderr
    assert run.returncode == 0, log
    assert "|sere_reversal|" in run.stdout
    (written,) = tmp_path.rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["sere_reversal"]["sample_len"] == 6
    assert re.search(r"sere: [1-9]\d* steps re-routed", log), log


def test_the_command(
    vllm_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off and others on one engine per batch size, with the options given; what generates is re-routed."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    lengths = []

    @contextmanager
    def started(*given: Any, **options: Any) -> Iterator[Any]:
        with in_process_engine(*given, **options) as llm:
            lengths.append(llm.llm_engine.vllm_config.model_config.max_model_len)
            yield llm

    monkeypatch.setattr(in_process, "in_process_engine", started)
    record: Any = run_json(
        capsys, "lm-eval", vllm_checkpoint, "--engine", "vllm", "--tasks", "sere_reversal", "--include-path",
        folder, "--table", vllm_checkpoint.parent / "table.safetensors", "--dtype", "float32",
        "--batch-size", 4, "--setting", "sere:select_top_k=1,active_experts=0",
        "--setting", "topk:select_top_k=1", "--engine-option", "max_model_len=200",
    )  # fmt: skip
    assert record["model"]["engine_options"] == {"max_model_len": 200}
    assert lengths == [200]
    off, one, other = record["cases"]
    assert off["setting"] == "off"
    for case in (one, other):
        seen = case["requests"]["generate_until"]
        assert seen["nothing_changed"] is None
        assert seen["experts"]["distinct_after"] < seen["experts"]["distinct_before"]
        (found,) = case["tasks"]["sere_reversal"]["metrics"].values()
        assert found["difference"] is not None
    assert off["requests"]["generate_until"]["experts"]["slots_rerouted"] == 0


def test_scored_tasks_are_refused(
    vllm_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an engine starts."""
    argv = [
        "lm-eval", str(vllm_checkpoint), "--engine", "vllm", "--tasks", "sere_reversal_choice",
        "--include-path", str(folder), "--table", str(vllm_checkpoint.parent / "table.safetensors"),
    ]  # fmt: skip
    assert main(argv) == 2
    assert "give --engine transformers --phases decode" in capsys.readouterr().err
