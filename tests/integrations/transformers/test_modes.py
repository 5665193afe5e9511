"""The ways a model is run: experts implementations, caches, compilation, devices, sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from transformers import PreTrainedModel, StaticCache

import sere.integrations.transformers as integration
from sere.integrations.transformers.inputs import cache_argument
from sere.policies import Oea, RandomReroute
from tests.support.decoding import decode, hook_count, prompts, random_table
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_every_experts_implementation(model: PreTrainedModel, implementation: str) -> None:
    """S = K is bitwise equal, S = 1 saves experts, and the re-routed tokens are the same for each."""
    model.set_experts_implementation(implementation)
    plain, logits = decode(model, prompts())
    with integration.apply(model, random_table(model), select_top_k=4):
        same, same_logits = decode(model, prompts())
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        fewer, _ = decode(model, prompts())
        assert all(s.distinct_after < s.distinct_before for s in handle.stats())
    model.set_experts_implementation("eager")
    with integration.apply(model, random_table(model), select_top_k=1):
        assert torch.equal(decode(model, prompts())[0], fewer)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_static_cache_decodes_like_a_growing_one(name: str) -> None:
    """Whether the cache is empty is decided on the device there, with the same result."""
    model = tiny_model(name)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        growing, _ = decode(model, prompts())
        expected = handle.stats()
        handle.reset_stats()
        static, _ = decode(model, prompts(), cache_implementation="static")
        assert handle.stats() == expected
    assert torch.equal(static, growing)


@pytest.mark.parametrize("cache", [None, "static"], ids=["growing", "static"])
def test_a_prompt_of_one_token_is_prefill_with_either_cache(
    model: PreTrainedModel, cache: str | None
) -> None:
    """One position and an empty cache is no decode step, even where the device alone knows the length."""
    tokens = prompts(4, 1)
    _, logits = decode(model, tokens)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        _, rerouted = decode(model, tokens, cache_implementation=cache)
        assert handle.stats()[0].steps == 5
    torch.testing.assert_close(rerouted[0], logits[0], rtol=1e-5, atol=1e-5)
    if cache is None:
        assert torch.equal(rerouted[0], logits[0])


def test_calls_without_a_cache_are_prefill(model: PreTrainedModel) -> None:
    """``use_cache=False`` runs the whole text each time: bitwise the unpatched model."""
    plain, logits = decode(model, prompts(), use_cache=False)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        same, same_logits = decode(model, prompts(), use_cache=False)
        assert all(s.steps == 0 and s.distinct_after == 0 for s in handle.stats())
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)


def test_sampling_draws_the_same_tokens_where_nothing_changes(model: PreTrainedModel) -> None:
    """Seeded sampling at S = K is that of the unpatched model: no random number is drawn on the way."""
    results = []
    for select_top_k in (None, 4):
        torch.manual_seed(5)
        handle = select_top_k and integration.apply(model, random_table(model), select_top_k=select_top_k)
        results.append(decode(model, prompts(), do_sample=True, top_k=0)[0])
        if handle:
            handle.remove()
    assert torch.equal(*results)


def test_beam_search_counts_every_beam(model: PreTrainedModel) -> None:
    """Rows are batch times beams; S = K is bitwise equal."""
    plain, _ = decode(model, prompts(2), num_beams=3)
    with integration.apply(model, random_table(model), select_top_k=4) as handle:
        same, _ = decode(model, prompts(2), num_beams=3)
        assert handle.stats()[0].rows == 6
    assert torch.equal(plain, same)


def test_inputs_as_embeddings(model: PreTrainedModel) -> None:
    """A prompt given as embeddings decodes from tokens afterward, as re-routed as any."""
    embeddings = model.get_input_embeddings()(prompts())
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        result = model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False)
        expected = decode(model, prompts())[0][:, 5:]
        assert handle.stats()[0].steps == 10
    assert torch.equal(result, expected)


def steps_with_static_cache(model: PreTrainedModel, call: Callable[..., object]) -> Tensor:
    """Prefill as it is, then three decode steps through ``call``; their logits."""
    given = cache_argument(model, StaticCache(config=model.config, max_cache_len=16))
    tokens, out = prompts(), []
    with torch.no_grad():
        logits = model(tokens, **given).logits
        for _ in range(3):
            tokens = logits[:, -1:].argmax(-1)
            logits = call(input_ids=tokens, **given).logits  # type: ignore[attr-defined]
            out.append(logits[:, -1])
    return torch.stack(out)


def start_again(handle: integration.Handle) -> None:
    """Set the statistics, and the steps that random choices depend on, to zero."""
    handle.reset_stats()
    for layer in handle._guard.layers:
        if (step := layer.router.tensors().get("step")) is not None:
            step.zero_()


@pytest.mark.parametrize("policy", [None, Oea(1), RandomReroute(1)], ids=["sere", "oea", "random"])
def test_compiled_as_one_graph(model: PreTrainedModel, policy: object) -> None:
    """``torch.compile(fullgraph=True)`` after ``apply`` re-routes as eager does, and ends with the handle."""
    torch._dynamo.reset()
    model.generation_config.eos_token_id = 2
    plain = steps_with_static_cache(model, model)
    options = {"policy": policy} if policy else {"table": random_table(model), "select_top_k": 1}
    handle = integration.apply(model, count_experts=True, **options)  # type: ignore[arg-type]
    eager = steps_with_static_cache(model, model)
    expected, experts = handle.stats(), handle.expert_counts()
    start_again(handle)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(steps_with_static_cache(model, compiled), eager, rtol=1e-4, atol=1e-4)
    assert handle.stats() == expected
    assert handle.expert_counts() == experts
    assert sum(experts[0].chosen) > 0
    assert not torch.allclose(eager, plain)
    handle.enabled = False
    torch.testing.assert_close(steps_with_static_cache(model, compiled), plain, rtol=1e-4, atol=1e-4)
    handle.enabled = True
    start_again(handle)
    torch.testing.assert_close(steps_with_static_cache(model, compiled), eager, rtol=1e-4, atol=1e-4)
    handle.remove()
    torch.testing.assert_close(steps_with_static_cache(model, compiled), plain, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("count_experts", [False, True])
def test_what_compiled_code_changes_stays_where_it_is(model: PreTrainedModel, count_experts: bool) -> None:
    """Every input that a compiled step writes to is known not to move: CUDA graphs are skipped otherwise.

    Unless it is asked for, nothing counts the uses of each expert.
    """
    moving: list[set[int]] = []
    written: list[int] = []

    def look(graph: Any, _: object) -> Callable[..., object]:
        context = torch._guards.TracingContext.get()
        assert context.fw_metadata is not None
        inputs = context.fw_metadata.input_info
        written.extend(index for index, one in enumerate(inputs) if one.mutates_data)
        moving.append(set(written) - set(context.fw_metadata.static_input_indices))
        return make_boxed_func(graph.forward)  # type: ignore[no-any-return]

    torch._dynamo.reset()
    with integration.apply(model, random_table(model), select_top_k=1, count_experts=count_experts):
        backend = aot_autograd(fw_compiler=look)
        steps_with_static_cache(model, torch.compile(model, fullgraph=True, backend=backend))
    assert not any(moving)
    # The counters of two layers, and their counts of experts, beside keys, values and lengths of the cache.
    assert len(written) == (10 if count_experts else 8)
    torch._dynamo.reset()


def test_with_the_hooks_of_a_device_map(model: PreTrainedModel) -> None:
    """Accelerate swaps the forward of dispatched modules; ours run around it, and both come off alone."""
    accelerate = pytest.importorskip("accelerate")
    expected_table = random_table(model)
    with integration.apply(model, expected_table, select_top_k=1):
        expected, _ = decode(model, prompts())
    devices = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    devices |= {"model.layers.0": "cpu", "model.layers.1": "cpu"}
    accelerate.dispatch_model(model, device_map=devices, main_device="cpu", force_hooks=True)
    assert hasattr(model.model.layers[0].mlp.experts, "_hf_hook")
    with integration.apply(model, expected_table, select_top_k=1) as handle:
        result, _ = decode(model, prompts())
        assert handle.stats()[0].steps == 5
    assert torch.equal(result, expected)
    assert hook_count(model) == 0


def test_reduced_precision(model: PreTrainedModel) -> None:
    """bfloat16: S = K is bitwise equal and S = 1 keeps the dtype on its way."""
    model = model.to(torch.bfloat16)
    plain, logits = decode(model, prompts())
    with integration.apply(model, random_table(model), select_top_k=4):
        same, same_logits = decode(model, prompts())
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        decode(model, prompts())
        assert all(s.distinct_after < s.distinct_before for s in handle.stats())
