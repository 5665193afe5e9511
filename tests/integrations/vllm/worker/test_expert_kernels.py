"""What each expert kernel supports, and how the settings are fitted to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import pytest
import torch

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm.worker import expert_kernels
from sere.policies.base import LayerShape
from sere.policies.sere import Sere
from sere.reroute import TokenBatch
from sere.similarity.layer import LayerSimilarity


@pytest.mark.parametrize("merge", ["none", "same", "distinct"])
def test_kernel_that_supports_duplicates_keeps_the_settings(merge: Any) -> None:
    """The CPU kernel takes any mode except sentinels."""
    config = RerouteConfig(select_top_k=1, merge=merge)
    assert expert_kernels.fit_to_kernel(config, "CPUUnquantizedExperts", merge_given=True) == config


@pytest.mark.parametrize("kernel", ["OAITritonExperts", "TrtLlmFp8ExpertsModular", "SomethingNew", None])
def test_other_kernels_get_distinct_rows(kernel: str | None) -> None:
    """A kernel that may not support duplicate ids gets distinct experts, enough of them, and no sentinel."""
    config = expert_kernels.fit_to_kernel(RerouteConfig(active_experts=1), kernel, merge_given=False)
    assert (config.merge, config.sentinel) == ("distinct", None)
    assert expert_kernels.needs_full_rows(config, kernel)
    layer = LayerSimilarity(torch.rand(8, 8).fill_diagonal_(1.0))
    rule = Sere({0: layer}, config, full_rows=True)
    router = rule.bind(LayerShape(0, 8, 4), torch.device("cpu"))
    ids, weights = torch.stack([torch.randperm(8)[:4] for _ in range(3)]), torch.rand(3, 4)
    result = router(TokenBatch(ids, weights))
    assert all(len(set(row)) == 4 for row in result.ids.tolist())
    assert len(set(result.ids.flatten().tolist())) == 4


@pytest.mark.parametrize(
    ("kernel", "options", "text"),
    [
        ("OAITritonExperts", {"merge": "none"}, "the expert kernel OAITritonExperts is not known to handle"),
        (None, {"merge": "same"}, "merge='same': the expert kernel in use is not known"),
        ("CPUUnquantizedExperts", {"merge": "sentinel", "sentinel": -1}, "is not known to handle such ids"),
        ("DeepGemmExperts", {"merge": "sentinel", "sentinel": 7}, "is not known to handle such ids"),
    ],
)  # fmt: skip
def test_refused_merge(kernel: str | None, options: dict[str, Any], text: str) -> None:
    """A mode that the kernel would abort on or compute wrongly is refused, with what to do."""
    with pytest.raises(ConfigError) as refused:
        expert_kernels.fit_to_kernel(RerouteConfig(select_top_k=1, **options), kernel, merge_given=True)
    assert text in str(refused.value)


class Experts:
    """vLLM's ``FusedMoEExperts`` in miniature."""

    @staticmethod
    def is_monolithic() -> bool:  # noqa: D102
        return False

    @staticmethod
    def is_supported_config(*_: Any) -> tuple[bool, str | None]:  # noqa: D102
        return True, None


class Monolithic(Experts):
    """Routes inside."""

    @staticmethod
    def is_monolithic() -> bool:  # noqa: D102
        return True


def test_monolithic_kernels_decline_while_the_model_is_built() -> None:
    """Within the context a kernel that routes inside is not supported; elsewhere all is as before.

    That is afterward, and in another thread, which may build the model of another engine.
    """
    original = Experts.__dict__["is_supported_config"]
    with expert_kernels.decomposed_kernels(Experts):
        supported, reason = Monolithic.is_supported_config(Monolithic, None)
        assert not supported
        assert "decomposed" in str(reason)
        assert Experts.is_supported_config(Experts, None) == (True, None)
        with ThreadPoolExecutor(1) as other:
            elsewhere = other.submit(Monolithic.is_supported_config, Monolithic, None)
        assert elsewhere.result() == (True, None)
    assert Experts.__dict__["is_supported_config"] is original
    assert Monolithic.is_supported_config(Monolithic, None) == (True, None)


def test_monolithic_layer_is_named() -> None:
    """The error names layer, kernel and the flag to set."""
    with pytest.raises(
        UnsupportedEngine, match=r"layers.3.mlp.experts: .* Monolithic .*--moe-backend triton"
    ):
        expert_kernels.refuse_monolithic("model.layers.3.mlp.experts", object(), Monolithic())


VARIANTS = ("X86CPUUnquantizedExperts", "ArmCPUUnquantizedExperts", "PowerCPUUnquantizedExperts")


@pytest.mark.parametrize("kernel", VARIANTS)
def test_variants_of_the_cpu_kernel(kernel: str) -> None:
    """The CPU kernel's variants for AMX, Arm and POWER keep a row's expert twice, as it does."""
    config = RerouteConfig(select_top_k=1)
    assert expert_kernels.fit_to_kernel(config, kernel, merge_given=False) == config


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kernel", VARIANTS)
def test_variants_share_the_call(kernel: str) -> None:
    """In the vLLM that is installed the variants run the very method of the CPU kernel that was run."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    module = import_module("vllm.model_executor.layers.fused_moe.experts.cpu_moe")
    variant = getattr(module, kernel, None)
    assert variant is None or variant.apply is module.CPUUnquantizedExperts.apply
