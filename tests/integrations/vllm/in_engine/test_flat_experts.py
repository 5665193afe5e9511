"""Steps of real engines on a CPU compute only the pairs that carry weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.engines.in_process import state_of
from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, prompts, sampling
from tests.support.vllm.int8 import needs_int8_kernel
from tests.support.vllm.models import quantize_experts, save_model

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def decode(llm: Any, **params: Any) -> tuple[list[list[int]], torch.Tensor]:
    """The tokens of each prompt, and their log-probabilities."""
    outputs = llm.generate(prompts(), sampling(logprobs=0, **params), use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    found = [
        [one[token].logprob for one, token in zip(a.logprobs, a.token_ids, strict=True)] for a in answers
    ]
    return [list(answer.token_ids) for answer in answers], torch.tensor(found)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_pairs_in_an_engine(model: Path, eager: bool) -> None:
    """The tokens are those of all slots; requests that keep their experts, and prompts, are not flattened."""
    settings = {"select_top_k": 1, "flatten": "on"}
    with engine(model, settings, enforce_eager=eager, dtype="float32") as llm:
        state = state_of(llm)
        found = decode(llm)
        flattening = read_stats(llm, reset=True).flattening
        assert (flattening.setting, flattening.why_not) == ("on", None)
        assert 0 < flattening.pairs < flattening.slots
        assert flattening.steps > 0

        for layer in state.layers.values():
            layer.flat.enabled = False
        expected = decode(llm)
        assert read_stats(llm, reset=True).flattening.steps == 0
        for layer in state.layers.values():
            layer.flat.enabled = True
        assert found[0] == expected[0]
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)

        protected = decode(llm, extra_args={"sere": "off"})
        configure(llm, enabled=False)
        off = decode(llm)
        assert read_stats(llm, reset=True).flattening.steps == 0
        assert protected[0] == off[0]
        assert torch.equal(protected[1], off[1])


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_experts_are_timed_before_the_first_request(model: Path, eager: bool) -> None:
    """What is measured is there when the engine is, and no step of it is counted."""
    with engine(model, {"select_top_k": 1}, enforce_eager=eager) as llm:
        stats = read_stats(llm)
        assert len(stats.flattening.break_even) == 1
        assert (stats.steps_rerouted, stats.steps_skipped, stats.flattening.whole) == (0, 0, 0)


def test_engine_that_computes_all_slots(model: Path) -> None:
    """With "off" the kernel is left as it is, and the statistics say why."""
    with engine(model, {"select_top_k": 1, "flatten": "off"}) as llm:
        decode(llm)
        stats = read_stats(llm)
        assert stats.flattening.why_not == "flatten is 'off'"
        assert stats.flattening.steps == 0
        assert all(layer.flat is None for layer in state_of(llm).layers.values())
        assert stats.to_mapping()["flattening"]["setting"] == "off"


def test_int8_experts_in_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have different experts there, so that pairs give the bits of all slots."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsInt8

    needs_int8_kernel()
    # vLLM wants AMX for it; without, the same operation computes in another way.
    monkeypatch.setattr(CPUExpertsInt8, "_supports_current_device", staticmethod(lambda: True))
    path = save_model(tmp_path)
    quantize_experts(path)
    with engine(path, {"select_top_k": 1, "flatten": "on"}) as llm:
        found = decode(llm)
        stats = read_stats(llm, reset=True)
        assert (stats.kernel, stats.settings["merge"]) == ("CPUExpertsInt8", "distinct")
        assert stats.flattening.steps > 0
        assert 0 < stats.flattening.pairs < stats.flattening.slots
        for layer in state_of(llm).layers.values():
            layer.flat.enabled = False
        expected = decode(llm)
        assert read_stats(llm, reset=True).flattening.steps == 0
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
