"""LoRA adapters: requests with and without one in the same batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.vllm.models import save_model

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.integrations.vllm import configure, read_stats
from tests.support.vllm.engines import engine, generate, prompts, sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

RANK = 8


def save_adapter(model: Path) -> Path:
    """Save an adapter of random weights for the query and value projections beside a checkpoint."""
    config = json.loads((model / "config.json").read_text())
    rows = {
        "q_proj": config["num_attention_heads"] * config["head_dim"],
        "v_proj": config["num_key_value_heads"] * config["head_dim"],
    }
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, out in rows.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, config["hidden_size"])
            tensors[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn(out, RANK)
    folder = model.with_name("adapter")
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(rows)})
    )
    return folder


@pytest.fixture
def _kernel_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters vLLM takes its Triton kernel for the experts, even unchanged ones; a CPU has none."""
    from vllm.model_executor.layers.fused_moe import layer

    config = layer.FusedMoEConfig
    monkeypatch.setattr(
        layer, "FusedMoEConfig", lambda **values: config(**values | {"is_lora_enabled": False})
    )


@pytest.mark.usefixtures("_kernel_of_the_cpu")
def test_adapters_in_a_batch(tmp_path: Path) -> None:
    """With an adapter for every second request counting and off give the same tokens, S = 1 fewer experts."""
    from vllm.lora.request import LoRARequest

    path = save_model(tmp_path)
    adapter = LoRARequest("adapter", 1, str(save_adapter(path)))

    def adapted(llm: Any) -> list[list[int]]:
        outputs = llm.generate(prompts(), sampling(), use_tqdm=False, lora_request=[adapter, None] * 4)
        return [list(output.outputs[0].token_ids) for output in outputs]

    # The CPU's kernel supports no adapter for experts, so only the projections are given one. A request
    # without an adapter gets the last one on a CPU, so that one stays empty.
    with engine(
        path, {"select_top_k": 1, "count_only": True}, dtype="float32", enable_lora=True, max_loras=2,
        max_lora_rank=RANK, lora_target_modules=["qkv_proj", "o_proj"],
    ) as llm:  # fmt: skip
        expected = adapted(llm)
        full = read_stats(llm, reset=True)
        assert full.layers[0].steps > 0
        assert full.layers[0].slots_rerouted == 0
        plain = generate(llm, prompts())
        assert [a == b for a, b in zip(expected, plain, strict=True)] == [False, True] * 4
        configure(llm, enabled=False)
        assert adapted(llm) == expected
        configure(llm, enabled=True, count_only=False)
        read_stats(llm, reset=True)
        assert adapted(llm) != expected
        fewer = read_stats(llm)
        for before, after in zip(full.layers, fewer.layers, strict=True):
            assert after.distinct_after < before.distinct_after
