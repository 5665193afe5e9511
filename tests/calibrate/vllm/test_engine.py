"""Calibration in real engines of vLLM, against calibration in Transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sere
from sere.calibrate import CalibrationConfig, collect
from sere.calibrate.collect import LayerCollector
from sere.calibrate.vllm import run
from sere.cli import main
from sere.errors import InputError, UnsupportedEngine, UnsupportedModel
from sere.structure import find_experts
from sere.table import SimilarityTable
from tests.support.calibration import char_tokenizer, interrupt_at_sums, load_whole
from tests.support.vllm.int8 import needs_int8_kernel
from tests.support.vllm.models import quantize_experts, save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TEXTS = [f"The quick brown fox {i} jumps over {i * i} lazy dogs and {7 * i} cats." for i in range(20)]
METRICS = ["projection", "cosine", "frobenius"]
OPTIONS: dict[str, Any] = {
    "metric": METRICS, "max_tokens": 340, "seq_len": 48, "batch_size": 4, "dtype": torch.float32,
    "progress": False, "sensitivity": False,
}  # fmt: skip
# Gate weights of a sample are float16: two that differ by float32's rounding may be neighbors there.
ONE_STEP = 2**-11
# In float32 both engines compute these models' hidden states alike.
COMPUTED_ALIKE = (
    "qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "gpt_oss", "granitemoe", "phimoe", "glm4_moe",
    "granitemoeshared", "granitemoehybrid",
)  # fmt: skip
# On a CPU, vLLM's multi-head latent attention gives other hidden states than Transformers' for these models,
# from the second position on, so routers choose other experts. Its router of Ernie 4.5 chooses others on
# equal hidden states. Its linear attention of Qwen3-Next takes only bfloat16 there: it is in neither list.
COMPUTED_OTHERWISE = ("deepseek_v2", "deepseek_v3", "ernie4_5_moe")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


def in_transformers(path: Path, **options: Any) -> dict[str, SimilarityTable]:
    return sere.calibrate(path, char_tokenizer(), TEXTS, **(OPTIONS | options))


def in_vllm(path: Path, texts: Any = TEXTS, **options: Any) -> dict[str, SimilarityTable]:
    return sere.calibrate(path, char_tokenizer(), texts, engine="vllm", **(OPTIONS | options))


def check_equal(found: Mapping[str, SimilarityTable], expected: Mapping[str, SimilarityTable]) -> None:
    """Check that similarities are within 1e-5, and choices of experts equal bit by bit."""
    for name in METRICS:
        mine, other = found[name], expected[name]
        assert mine.identity.differences(other.identity) == []
        assert (mine.data_digest, mine.calibration_tokens) == (other.data_digest, other.calibration_tokens)
        for index, layer in other.layers.items():
            torch.testing.assert_close(
                mine.layers[index].similarity, layer.similarity, rtol=0, atol=1e-5, equal_nan=True
            )
    sample, expected_sample = found["projection"].routing, expected["projection"].routing
    assert sample is not None
    assert expected_sample is not None
    assert torch.equal(sample.starts, expected_sample.starts)
    for index in expected_sample.ids:
        ids, weights = by_id(sample.ids[index], sample.weights[index])
        expected_ids, expected_weights = by_id(expected_sample.ids[index], expected_sample.weights[index])
        assert torch.equal(ids, expected_ids)
        assert float((weights - expected_weights).abs().max()) <= ONE_STEP
        torch.testing.assert_close(
            sample.energy[index], expected_sample.energy[index], rtol=1e-4, atol=1e-6, equal_nan=True
        )


def by_id(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's slots in the order of their ids: routers of vLLM return them in any order."""
    ordered, order = ids.sort(dim=1)
    return ordered, weights.float().gather(1, order)


@pytest.mark.parametrize("name", COMPUTED_ALIKE)
def test_the_table_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    """The same experts chosen, and similarities within 1e-5, in float32."""
    path = save_model(tmp_path, name)
    check_equal(in_vllm(path), in_transformers(path))


@pytest.mark.parametrize("name", COMPUTED_OTHERWISE)
def test_experts_are_those_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the hidden states and choices that vLLM computes, Transformers' experts give the same table."""
    seen: list[tuple[int, Any]] = []
    add = LayerCollector.add

    def recorded(self: LayerCollector, *rows: Tensor) -> None:
        seen.append((self.layer.index, [part.clone() for part in rows]))
        add(self, *rows)

    path = save_model(tmp_path, name)
    with monkeypatch.context() as patch:
        patch.setattr(LayerCollector, "add", recorded)
        found = in_vllm(path)
    config = CalibrationConfig(**OPTIONS)
    collectors = {layer.index: LayerCollector(layer, config) for layer in find_experts(load_whole(path))}
    for index, rows in seen:
        collectors[index].add(*rows)
    for index, collector in collectors.items():
        for metric, expected in collector.finish().items():
            torch.testing.assert_close(
                found[metric].layers[index].similarity, expected.similarity,
                rtol=0, atol=1e-5, equal_nan=True,
            )  # fmt: skip


def test_experts_in_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A W8A8 checkpoint's own kernel computes the outputs: close to those of the weights it stands for."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsInt8

    needs_int8_kernel()
    # vLLM wants AMX for it; without, the same operation computes in another way.
    monkeypatch.setattr(CPUExpertsInt8, "_supports_current_device", staticmethod(lambda: True))
    path = save_model(tmp_path)
    rounded = quantize_experts(path)
    options = {"dtype": torch.bfloat16, "metric": ["projection"]}
    found = in_vllm(path, **options)["projection"]
    expected = in_transformers(rounded, **options)["projection"]
    made: Any = found.provenance["calibration"]
    assert (made["kernels"], made["quantization"]) == (["CPUExpertsInt8"], "compressed-tensors")
    for index, layer in expected.layers.items():
        torch.testing.assert_close(
            found.layers[index].similarity, layer.similarity, rtol=0, atol=0.02, equal_nan=True
        )


@pytest.fixture
def _one_core_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # On one NUMA node vLLM does not find cores for two workers by itself.
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")


@pytest.mark.usefixtures("_one_core_each")
def test_two_ranks_sum_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensor parallelism each rank computes a part of every expert; the table is that of one.

    That is so after an interruption, too, when only one of them has kept sums.
    """
    path, work = save_model(tmp_path), tmp_path / "work"
    options = {"engine_options": {"tensor_parallel_size": 2}, "work_dir": work}
    with monkeypatch.context() as patch:
        interrupt_at_sums(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            in_vllm(path, **options)
    assert [file.name for file in work.glob("sums-*")] == ["sums-192-0.safetensors"]
    found = in_vllm(path, **options)
    check_equal(found, in_transformers(path))
    made: Any = found["projection"].provenance["calibration"]
    assert made["tensor_parallel_size"] == 2


@pytest.mark.usefixtures("_one_core_each")
def test_two_stages_measure_their_layers(tmp_path: Path) -> None:
    """With pipeline parallelism each rank holds other layers; the table is that of one process."""
    path = save_model(tmp_path)
    found = in_vllm(path, engine_options={"pipeline_parallel_size": 2})
    check_equal(found, in_transformers(path))
    made: Any = found["projection"].provenance["calibration"]
    assert made["pipeline_parallel_size"] == 2


def test_the_command_and_the_models_own_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without texts the engine samples them; the seed repeats them, and the table says whose they are."""
    path = save_model(tmp_path)
    char_tokenizer().save_pretrained(path)
    expected = in_vllm(path, None)["projection"]
    arguments = "--engine vllm --engine-option dtype=float32 --max-tokens 340 --seq-len 48 --batch-size 4"
    assert main(["calibrate", str(path), *arguments.split(), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["tables"]
    assert facts["data_digest"] == expected.data_digest
    assert any("vLLM computes no gradients" in line for line in facts["report"])
    found = SimilarityTable.load(path / "similarity.sere")
    for index, layer in expected.layers.items():
        torch.testing.assert_close(found.layers[index].similarity, layer.similarity, equal_nan=True)
    made: Any = found.provenance["calibration"]
    assert made["texts"].startswith("written by the model itself")
    assert made["kernels"] == ["CPUUnquantizedExperts"]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C within a step ends the engine; the same call goes on after the last kept batch, bit by bit."""
    path, work = save_model(tmp_path), tmp_path / "work"
    before = sorted(file.name for file in path.iterdir())
    whole = in_vllm(path, None)
    check, chunks = collect.check_outputs, count(1)

    def interrupt(*arguments: Any) -> None:
        if next(chunks) == 6:  # the last of two layers, in the third of three batches
            raise KeyboardInterrupt
        check(*arguments)

    with monkeypatch.context() as patch:
        done = interrupt_at_sums(patch, 0)
        patch.setattr(collect, "check_outputs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            in_vllm(path, None, work_dir=work)
    assert done == [192, 336]
    with pytest.raises(InputError, match="with other settings: batch_size was 4, now 2; repeat"):
        in_vllm(path, None, work_dir=work, batch_size=2)
    with pytest.raises(InputError, match=r"engine_options\.quantization was not given, now fp8; repeat"):
        in_vllm(path, None, work_dir=work, engine_options={"quantization": "fp8"})
    with monkeypatch.context() as patch:
        further = interrupt_at_sums(patch, 0)
        patch.setattr(run, "write_tokens_in_engine", interrupt)
        found = in_vllm(path, None, work_dir=work)
    assert further == [340]
    for name in METRICS:
        assert found[name].fingerprint == whole[name].fingerprint
        assert found[name].data_digest == whole[name].data_digest
        assert found[name].provenance["calibration"] == whole[name].provenance["calibration"]
    check_equal(found, whole)
    assert sorted(file.name for file in path.iterdir()) == before
    assert [file.name for file in work.glob("sums-*")] == ["sums-340-0.safetensors"]


def test_experts_that_are_not_summed_by_weight_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weighted-sum check guards the engine's kernels, too; the text names the layer."""
    from sere.integrations.vllm.calibration.engine_experts import EngineExperts

    path = save_model(tmp_path)
    forward = EngineExperts.forward

    def weighs_the_input(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return forward(self, hidden * weights[:, :1].to(hidden.dtype), ids, torch.ones_like(weights))

    monkeypatch.setattr(EngineExperts, "forward", weighs_the_input)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts .*not the sum of its experts"):
        in_vllm(path)


def test_an_engine_that_does_not_load_the_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers cannot show their layers: the text says what to change."""
    from sere.integrations.vllm.calibration import equip

    monkeypatch.setattr(equip, "equip_for_calibration", lambda _: None)
    with pytest.raises(UnsupportedEngine, match="the workers of this engine do not know sere"):
        in_vllm(save_model(tmp_path))
