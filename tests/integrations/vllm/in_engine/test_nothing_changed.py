"""Real engines that re-route nothing say so; models of an unusual shape are re-routed all the same."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sere.bench.target import random_table
from sere.bundled import model_path
from sere.table import fit
from tests.support.patience import HANGS_S
from tests.support.vllm.models import save_model, table_of

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.engines.in_process import state_of
from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, generate, prompts

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Return what we have told the log since this was asked last, once, whoever hands it on."""
    logger = logging.getLogger("vllm.sere")

    def lines() -> list[str]:
        # An engine's start takes all handlers away.
        logger.addHandler(caplog.handler)
        # Where the engine's logger does hand on, each of its records comes twice.
        records = {id(record): record for record in caplog.records}.values()
        found = [record.getMessage() for record in records if record.name in ("sere", "vllm.sere")]
        caplog.clear()
        return found

    yield lines
    logger.removeHandler(caplog.handler)


def test_each_reason(tmp_path: Path, told: Callable[[], list[str]]) -> None:
    """An engine with another K than the table's gets a line; each use that moves nothing is named."""
    fit.warn_once.forget()  # said once a process, perhaps in another test
    path = save_model(tmp_path)
    with engine(path, {"select_top_k": 1}, hf_overrides={"num_experts_per_tok": 2}) as llm:
        assert [layer.shape.top_k for layer in state_of(llm).layers.values()] == [2, 2]
        (line,) = told()
        assert "was calibrated with K=4 routed slots per token, this model has K=2: similarities do" in line

        generate(llm, prompts(4), tokens=1, prompt_logprobs=1)
        assert "no decode step was seen in" in str(read_stats(llm, reset=True).nothing_changed)

        generate(llm, prompts(6), tokens=240)
        found = read_stats(llm, reset=True)
        assert found.nothing_changed is None
        assert all(layer.distinct_after < layer.distinct_before for layer in found.layers)

        generate(llm, prompts(4), extra_args={"sere": "off"})
        found = read_stats(llm, reset=True)
        assert found.skipped["protected"] > 0
        assert "all requests kept their own experts" in str(found.nothing_changed)
        assert not told()

        configure(llm, enabled=False)
        generate(llm, prompts(4))
        assert read_stats(llm, reset=True).nothing_changed is None

        configure(llm, enabled=True, threshold=2)
        (line,) = told()
        assert "threshold=2 is above every similarity in the table" in line
        generate(llm, prompts(4))
        assert "similarity of threshold=2 or more" in str(read_stats(llm).nothing_changed)
        assert not told()
    # The engine has ended.
    (line,) = told()
    assert "nothing was re-routed: no expert had a similarity of threshold=2 or more" in line


def test_log_of_processes(tmp_path: Path) -> None:
    """A program that only scores prompts, with workers of their own, reads why nothing was re-routed."""
    path = save_model(tmp_path)
    settings = {"sere": {"select_top_k": 2, "table": str(table_of(path))}, "active_experts": 3}
    (tmp_path / "score.py").write_text(
        "from vllm import LLM, SamplingParams\n"
        "if __name__ == '__main__':\n"
        f"    llm = LLM({str(path)!r}, skip_tokenizer_init=True, enforce_eager=True, max_model_len=64,\n"
        f"        additional_config={settings!r})\n"
        "    scored = SamplingParams(max_tokens=1, prompt_logprobs=1, detokenize=False)\n"
        "    llm.generate([{'prompt_token_ids': [1, 2, 3]}] * 4, scored)\n"
    )
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        subprocess.run(
            [sys.executable, "score.py"], cwd=tmp_path, env=environment, stdout=log, stderr=log, check=True,
            timeout=HANGS_S,
        )  # fmt: skip
    text = (tmp_path / "log").read_text()
    reasons = re.findall(
        r"sere: nothing was re-routed: no decode step was seen in \d+ calls? of the model", text
    )
    assert len(reasons) == 1
    assert (
        "sere: additional_config has 'active_experts', but settings of re-routing belong under \"sere\""
        in text
    )


def test_stage_without_moe_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first of two pipeline stages holds a dense layer alone, the other is re-routed."""
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
    monkeypatch.setenv("VLLM_PP_LAYER_PARTITION", "1,2")
    # Of its three layers the first is dense.
    path = save_model(tmp_path, "deepseek_v2")
    parallel = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    with engine(path, {"select_top_k": 1}, **parallel) as llm:
        # vllm-cpu makes a stage's input buffers in a dummy step alone, and an eager engine runs none.
        llm.collective_rpc("execute_dummy_batch")
        generate(llm, prompts(6))
        found = read_stats(llm)
    assert [layer.index for layer in found.layers] == [1, 2]
    assert found.nothing_changed is None
    assert found.kernel == "CPUUnquantizedExperts"
    assert found.layers[0].distinct_after < found.layers[0].distinct_before


def test_layers_of_different_slots(tmp_path: Path) -> None:
    """A model with two slots per token in one layer and four in the next is re-routed in both."""
    config = AutoConfig.for_model(
        "hunyuan_v1_moe", vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        moe_intermediate_size=[64, 64], num_experts=16, moe_topk=[2, 4], num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model, path = AutoModelForCausalLM.from_config(config, dtype=torch.float32), tmp_path / "model"
    model.save_pretrained(path)
    random_table(model).save(table_of(path))
    with engine(path, {"select_top_k": 1}) as llm:
        assert [layer.shape.top_k for layer in state_of(llm).layers.values()] == [2, 4]
        generate(llm, prompts(6))
        found = read_stats(llm)
    assert found.nothing_changed is None
    assert all(layer.distinct_after < layer.distinct_before for layer in found.layers)


def test_foreign_code_of_a_folder(tmp_path: Path) -> None:
    """Checking an engine's settings runs no Python code that lies in the model's folder."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    path, ran = save_model(tmp_path), tmp_path / "ran"
    named = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(named | {"auto_map": {"AutoConfig": "foreign.Config"}}))
    (path / "foreign.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import Qwen3MoeConfig as Config\n"
    )
    settings = {"select_top_k": 2, "table": str(table_of(path))}
    arguments = EngineArgs(
        model=str(path), skip_tokenizer_init=True, max_model_len=64, additional_config={"sere": settings}
    )
    assert arguments.create_engine_config().additional_config["sere"]["table"] == settings["table"]
    assert not ran.exists()


def test_structured_output(tmp_path: Path) -> None:
    """Requests whose tokens a grammar masks are re-routed, and their texts obey it."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    table = tmp_path / "table.safetensors"
    random_table(AutoModelForCausalLM.from_pretrained(model_path())).save(table)
    masked = SamplingParams(
        temperature=0, max_tokens=12, structured_outputs=StructuredOutputsParams(regex="[0-9]{4}")
    )
    settings = {"select_top_k": 1, "table": str(table)}
    with engine(model_path(), settings, skip_tokenizer_init=False) as llm:
        outputs = llm.generate([f"add {i} {i + 1} = " for i in range(6)], masked, use_tqdm=False)
        found = read_stats(llm)
    assert all(re.fullmatch("[0-9]{4}", output.outputs[0].text) for output in outputs)
    assert found.nothing_changed is None
    assert all(layer.distinct_after < layer.distinct_before for layer in found.layers)
