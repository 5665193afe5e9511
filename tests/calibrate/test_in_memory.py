from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from sere.calibrate import calibrate, collect
from sere.calibrate.collect import LayerCollector
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.weights import similarity_of_weights
from sere.errors import AlreadyApplied, UnsupportedModel
from sere.similarity import make_accumulator, weights_similarity
from sere.structure import find_experts, identify
from tests.support.calibration import ALL_METRICS, char_tokenizer, config, routing, some_tokens, worst
from tests.support.tiny import ARCHITECTURES, Looping, tiny_model

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Pack my box with five dozen liquor jugs!"] * 8


def _run(model: nn.Module, *metrics: str, **options: Any) -> Any:
    return collect_in_memory(
        model, find_experts(model), some_tokens(), config(*metrics, **options)
    ).similarities


def test_table_says_where_it_comes_from() -> None:
    """A table names the model, metric, parameters, number and digest of tokens, and seed."""
    model = tiny_model("qwen3_moe")
    table = calibrate(
        model, char_tokenizer(), TEXTS, metric="cka", metric_parameters={"kernel": "rbf"},
        max_tokens=100, seq_len=16, seed=4, progress=False,
    )  # fmt: skip
    assert table.identity == identify(model)
    assert set(table.layers) == {0, 1}
    assert (table.metric, table.metric_parameters["kernel"]) == ("cka", "rbf")
    assert (table.calibration_tokens, table.seed, len(table.data_digest)) == (100, 4, 64)
    assert table.provenance["calibration"] == {"seq_len": 16, "batch_size": 8, "device": "cpu"}
    assert "torch" in table.provenance["versions"]


@pytest.mark.parametrize("metric", ["frobenius", "projection"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_direct_computation(architecture: str, metric: str) -> None:
    """Hooks, packing and chunks give what one accumulator gives that saw all tokens of a layer at once."""
    model = tiny_model(architecture)
    result = _run(model, metric)
    layer = find_experts(model)[-1]
    seen: list[tuple[Any, ...]] = []
    layer.module.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    with torch.no_grad():
        for batch in some_tokens().batches(3):
            model(input_ids=batch)
    hidden, ids, weights = (torch.cat([p[i].flatten(0, -2) for p in seen]) for i in range(3))
    assert len(hidden) == some_tokens().num_tokens
    outputs = torch.stack([_expert(layer.module, hidden, e) for e in range(layer.num_experts)])
    direct = make_accumulator(metric, layer.num_experts)
    direct.update(outputs, ids, weights)
    expected = direct.finalize().similarity
    found = result[metric][layer.index].similarity
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, equal_nan=True)


def _expert(module: nn.Module, hidden: torch.Tensor, e: int) -> torch.Tensor:
    ids, ones = torch.full((len(hidden), 2), e), torch.tensor([[1.0, 0.0]]).expand(len(hidden), 2)
    with torch.no_grad():
        return module.forward(hidden, ids, ones).reshape(hidden.shape)


def test_several_metrics_in_one_pass_equal_single_passes() -> None:
    """Asking for five metrics at once gives bit for bit what five runs give."""
    model = tiny_model("deepseek_v3")
    together = _run(model)
    assert set(together) == set(ALL_METRICS)
    for name in ALL_METRICS:
        assert worst({name: together[name]}, _run(model, name)) == 0


# One token a chunk; a number that divides nothing; all tokens of a batch.
@pytest.mark.parametrize("chunk_tokens", [1, 7, 10_000])
def test_chunk_size_does_not_matter(chunk_tokens: int) -> None:
    """Similarities are the same however many tokens' outputs are held at a time, up to rounding."""
    model = tiny_model("qwen3_moe")
    chunked = _run(model, chunk_bytes=chunk_tokens * 16 * 32 * 4)
    assert worst(_run(model), chunked) < 1e-5


def test_batch_size_does_not_matter() -> None:
    """Similarities are the same for one sequence a pass and for many, up to rounding."""
    model = tiny_model("gpt_oss")
    assert worst(_run(model, batch_size=1), _run(model, batch_size=64)) < 1e-5


def test_chunks_stay_within_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No expert outputs larger than asked for exist at any time, however many tokens a call brings."""
    sizes: list[int] = []
    compute = collect.expert_outputs

    def watched(*args: Any) -> torch.Tensor:
        outputs = compute(*args)
        sizes.append(outputs.numel() * outputs.element_size())
        return outputs

    monkeypatch.setattr(collect, "expert_outputs", watched)
    layer = find_experts(tiny_model("qwen3_moe"))[0]
    collector = LayerCollector(layer, config("frobenius", chunk_bytes=30_000))
    for t in (1, 100, 1000):
        collector.add(*routing(layer, t))
    assert max(sizes) <= 30_000
    assert sum(sizes) == 1101 * layer.num_experts * 32 * 4


def test_memory_does_not_grow_with_tokens() -> None:
    """What a collector holds after ten times the tokens is not a byte more."""
    layer = find_experts(tiny_model("qwen3_moe"))[0]
    held = []
    for calls in (3, 30):
        collector = LayerCollector(layer, config("frobenius", "cosine", "projection", "cka"))
        for _ in range(calls):
            collector.add(*routing(layer, 50))
        held.append(sum(tensor.nbytes for tensor in _tensors(vars(collector)["_accumulators"])))
    assert held[0] == held[1] > 0


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def test_model_is_left_as_found() -> None:
    """Afterward there is no hook, each module's mode is as before and no weight has changed."""
    model = tiny_model("qwen3_moe").train()
    model.model.layers[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    implementation = model.config._experts_implementation
    _run(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert modes == [m.training for m in model.modules()]
    assert model.config._experts_implementation == implementation
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_model_is_left_as_found_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the middle of the pass, Ctrl-C included, leaves no hook and no other mode behind."""
    model = tiny_model("qwen3_moe").train()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collect, "check_weighted_sum", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run(model)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())


def test_evaluation_mode_while_calibrating() -> None:
    """A model in training mode is calibrated in evaluation mode: dropout does not change the result."""
    evaluated = tiny_model("qwen3_moe", attention_dropout=0.5)
    training = tiny_model("qwen3_moe", attention_dropout=0.5).train()
    assert worst(_run(evaluated), _run(training)) == 0


def test_bfloat16_model_accumulates_in_float32() -> None:
    """A bfloat16 model's similarities are float32 and finer than bfloat16 could hold."""
    result = _run(tiny_model("qwen3_moe").to(torch.bfloat16), "frobenius")
    similarity = result["frobenius"][0].similarity
    assert similarity.dtype == torch.float32
    assert not similarity.equal(similarity.bfloat16().float())


def test_weights_need_neither_texts_nor_tokenizer() -> None:
    """The metric of the weights runs without data, and the table says that there was none."""
    model = tiny_model("gpt_oss")
    table = calibrate(model, metric="weights", progress=False)
    assert (table.calibration_tokens, table.data_digest, table.seed) == (0, "", None)
    module = find_experts(model)[0].module
    by_hand = torch.cat([p.detach().reshape(16, -1) for p in module.parameters()], dim=1)
    assert table.layers[0].similarity.equal(weights_similarity(by_hand).similarity)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_of_every_layout_are_found(architecture: str) -> None:
    """Stacked, flat and zero-expert layouts: an expert that is another's multiple is found to be so."""
    layer = find_experts(tiny_model(architecture))[0]
    with torch.no_grad():
        for parameter in layer.module.parameters():
            rows = parameter if parameter.ndim == 3 else parameter.view(layer.num_experts, -1)
            rows[1] = 2 * rows[0]
    similarity = similarity_of_weights(layer, "weights").similarity
    assert similarity[0, 1] > 0.9999
    assert similarity[0, 2] < 0.5


def test_dense_model_is_refused() -> None:
    """A model without experts modules is refused before the texts are read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModel, match="no experts module found"):
        calibrate(LlamaForCausalLM(config), char_tokenizer(), TEXTS)


def test_rerouted_model_is_refused() -> None:
    """A model on which re-routing is active is not measured; without its handle it is."""
    import sere

    model, options = tiny_model("qwen3_moe"), {"max_tokens": 64, "seq_len": 16, "progress": False}
    table = calibrate(model, char_tokenizer(), TEXTS, **options)
    with sere.apply(model, table, select_top_k=1), pytest.raises(AlreadyApplied, match=r"call remove\(\)"):
        calibrate(model, char_tokenizer(), TEXTS, **options)
    assert calibrate(model, char_tokenizer(), TEXTS, **options).fingerprint == table.fingerprint


def test_layer_that_is_never_called_is_refused() -> None:
    """A model whose forward pass leaves an experts module out gets no table with a hole."""
    model = tiny_model("qwen3_moe")
    layers = find_experts(model)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    with pytest.raises(
        UnsupportedModel, match=r"layers\.1\.mlp\.experts: the model's forward pass never called"
    ):
        collect_in_memory(model, layers, some_tokens(), config("frobenius"))


def test_all_loops_over_the_layers_count() -> None:
    """A model that loops over its layers is measured on every pass, not on its first alone."""
    model = tiny_model("qwen3_moe")
    model.model.layers.__class__ = Looping
    looped = _run(model, "frobenius")
    seen: list[tuple[Any, ...]] = []
    layer = find_experts(model)[0]
    layer.module.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
    with torch.no_grad():
        for batch in some_tokens().batches(3):
            model(input_ids=batch, use_cache=False)
    direct = make_accumulator("frobenius", layer.num_experts)
    for hidden, ids, weights in seen:
        direct.update(
            torch.stack([_expert(layer.module, hidden, e) for e in range(layer.num_experts)]), ids, weights
        )
    assert sum(len(hidden) for hidden, _, _ in seen) == 3 * some_tokens().num_tokens
    torch.testing.assert_close(
        looped["frobenius"][0].similarity, direct.finalize().similarity, rtol=0, atol=2e-5
    )


def test_same_seed_same_table_other_seed_other_tokens() -> None:
    """The seed decides which documents come first, and so the digest; the same one repeats the table."""
    model, tokenizer = tiny_model("qwen3_moe"), char_tokenizer()
    texts = [f"{i} little documents, each of them different: {i * i}" for i in range(30)]
    options: dict[str, Any] = {"max_tokens": 64, "seq_len": 16, "progress": False}
    first, again, other = (calibrate(model, tokenizer, texts, seed=seed, **options) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint
    assert first.data_digest != other.data_digest
