"""What was compiled before ``apply`` is refused, wherever it stands around the experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.config import RerouteConfig
from sere.errors import InputError
from sere.integrations.transformers.compiled import is_compiled
from sere.integrations.transformers.hooks import HookedLayer
from sere.policies.sere import Sere
from sere.reroute import COUNTERS, TokenBatch
from sere.structure import find_experts
from tests.support.decoding import decode, hook_count, prompts, random_table
from tests.support.tiny import tiny_model

CONFIG = RerouteConfig(select_top_k=1, active_experts=6, backend="reference")


def test_a_compiled_model_is_refused(model: PreTrainedModel) -> None:
    """Compiled code would pass over hooks without a word: wrapped, compiled in place, or by ``generate``."""
    table = random_table(model)
    with pytest.raises(InputError, match="it is already compiled"):
        integration.apply(torch.compile(model, backend="eager"), table, select_top_k=1)  # type: ignore[arg-type]
    model._compiled_call = torch.compile(model.__call__, backend="eager")
    with pytest.raises(InputError, match=r"delete model\._compiled_call"):
        integration.apply(model, table, select_top_k=1)
    del model._compiled_call
    model.compile(backend="eager")
    with pytest.raises(InputError, match=r"apply re-routing before compiling and switch it"):
        integration.apply(model, table, select_top_k=1)


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, backend="eager")


def forwards_of_layers(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.forward = compiled(layer.forward)


def wrapped_decoder(model: PreTrainedModel) -> None:
    model.model = torch.compile(model.model, backend="eager")


def wrapped_call(model: PreTrainedModel) -> None:
    """As accelerate does: another function around the compiled one."""
    inner = compiled(model.model.forward)
    model.model.forward = torch.no_grad()(inner)


CASES: dict[str, tuple[Callable[[PreTrainedModel], object], str]] = {
    "forward": (lambda m: setattr(m, "forward", compiled(m.forward)), r"\(model, .*delete model\.forward"),
    "decoder": (wrapped_decoder, r"\(model\.model, a OptimizedModule\).*use model\.model\._orig_mod in its"),
    "a function around": (wrapped_call, r"\(model\.model, .*delete model\.model\.forward"),
    "layers": (forwards_of_layers, r"\(model\.model\.layers\.0, .*delete model\.model\.layers\.0\.forward"),
    "one layer in place": (
        lambda m: m.model.layers[1].compile(backend="eager"),
        r"\(model\.model\.layers\.1, .*set model\.model\.layers\.1\._compiled_call_impl = None",
    ),
    "the experts in place": (
        lambda m: m.model.layers[1].mlp.experts.compile(backend="eager"),
        r"\(model\.model\.layers\.1\.mlp\.experts, .*_compiled_call_impl = None",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_parts_around_the_experts_are_refused(model: PreTrainedModel, case: str) -> None:
    """The text names the part, and what it says to do lets ``apply`` work."""
    table = random_table(tiny_model("qwen3_moe"))
    make, text = CASES[case]
    make(model)
    with pytest.raises(InputError, match=f"model: it is already compiled {text}"):
        integration.apply(model, table, select_top_k=1)
    assert hook_count(model) == 0


def test_parts_beside_the_experts_may_be_compiled(model: PreTrainedModel) -> None:
    """Compiled attention, and a compiled forward of the experts themselves, leave the hooks running."""
    torch._dynamo.reset()
    table = random_table(model)
    with integration.apply(model, table, select_top_k=1):
        expected, _ = decode(model, prompts())
    for layer in model.model.layers:
        layer.post_attention_layernorm.compile(backend="eager")
        layer.mlp.experts.forward = compiled(layer.mlp.experts.forward)
    with integration.apply(model, table, select_top_k=1) as handle:
        assert torch.equal(decode(model, prompts())[0], expected)
        assert handle.stats()[0].steps == 5
    torch._dynamo.reset()


def test_a_function_that_is_kept_from_the_compiler_is_not_compiled() -> None:
    """``torch.compiler.disable`` wraps as ``torch.compile`` does, and does the opposite."""
    assert is_compiled(torch.compile(lambda x: x, backend="eager"))
    assert not is_compiled(torch.compiler.disable(lambda x: x))
    assert not is_compiled(nn.Linear.forward)


def test_compiled_code_that_cannot_be_seen_is_named_by_the_handle(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A closure hides what it calls: steps run, no layer's hook does, and the handle says so."""
    run = model.model.forward

    def hidden(*args: object, **kwargs: object) -> object:
        hooks = [(m, m._forward_pre_hooks) for m in model.model.modules()]
        for module, _ in hooks:
            module._forward_pre_hooks = type(module._forward_pre_hooks)()
        try:
            return run(*args, **kwargs)
        finally:
            for module, kept in hooks:
                module._forward_pre_hooks = kept

    model.model.forward = hidden
    with integration.apply(model, random_table(model), select_top_k=1):
        decode(model, prompts())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "nothing was re-routed: 5 decode steps ran, but no layer's hook was called; the model was" in line


def test_layers_compiled_after_apply_are_re_routed(model: PreTrainedModel) -> None:
    """Regional compilation in the right order: the same tokens as without."""
    torch._dynamo.reset()
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        expected, _ = decode(model, prompts())
        handle.reset_stats()
        for layer in model.model.layers:
            layer.compile(backend="eager")
        assert torch.equal(decode(model, prompts())[0], expected)
        assert handle.stats()[0].steps == 5
        assert handle.activity().eligible == 5
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_compiler_knows_what_stays_where_it_is(model: PreTrainedModel) -> None:
    """What compiled code changes, a layer's counters, is an input of fixed address: CUDA graphs need that."""
    # It warns of a part of PyTorch while it is imported.
    from torch._inductor.compile_fx import compile_fx

    layer = HookedLayer(find_experts(model)[0], Sere(random_table(model).layers, CONFIG), torch.device("cpu"))
    fixed: list[tuple[int, ...]] = []
    given: list[list[int]] = []

    def inner(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **how: Any) -> Callable[..., object]:
        fixed.append(tuple(how["static_input_idxs"]))
        given.append([tensor.numel() for tensor in inputs if tensor.dtype is torch.int64])
        return make_boxed_func(graph.forward)

    def step(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return layer.route(TokenBatch(ids, weights)).ids + 0

    ids = torch.arange(8, dtype=torch.int32).reshape(2, 4)
    torch.compile(step, fullgraph=True, backend=partial(compile_fx, inner_compile=inner))(
        ids, torch.rand(2, 4)
    )
    assert layer.counters[COUNTERS.index("steps")] == 1
    # All inputs but ids and weights; the only one of int64 are the counters.
    assert len(fixed[0]) == len(layer.router.tensors())
    assert given == [[len(COUNTERS)]]
