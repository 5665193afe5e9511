"""Blocks that take turns, medians with spread, and ratios round by round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from sere.bench.overhead import measure_overhead
from sere.bench.run import BenchPlan, bench
from sere.bench.shapes import SHAPES, shape_config
from sere.bench.stepper import Stepper
from sere.bench.target import Subject, random_model, random_table, random_tokens
from sere.bench.timing import Times, interleave, spread, turns
from sere.errors import InputError
from sere.integrations.transformers import apply
from sere.policies.spec import parse_spec
from sere.structure import find_experts, identify
from tests.support.tiny import tiny_model


def test_turns_change() -> None:
    """Over twice as many rounds as variants each is first twice, and follows different ones."""
    rounds = [turns("abc", index) for index in range(6)]
    assert ["".join(order) for order in rounds] == ["abc", "cba", "bca", "acb", "cab", "bac"]


def test_variants_take_turns_and_the_first_round_is_not_kept() -> None:
    """Each round runs every variant once, each starts in turn, and the warm-up round leaves no times."""
    log: list[str] = []

    def variant(name: str) -> AbstractContextManager[object]:
        @contextmanager
        def context() -> Iterator[None]:
            log.append(name)
            yield

        return context()

    times = interleave(lambda: [float(len(log))], [lambda: variant("a"), lambda: variant("b")], rounds=3)
    assert "".join(log) == "abbabaab"
    assert [time.blocks for time in times] == [[[4.0], [6.0], [7.0]], [[3.0], [5.0], [8.0]]]


def test_ratios_compare_blocks_of_the_same_round() -> None:
    """A machine that slows down in one round changes the times, not the ratio; above 1 is faster than off."""
    off, on = Times([[2.0, 2.0], [20.0, 20.0]]), Times([[1.0, 1.0], [10.0, 10.0]])
    ratio = on.speedup_over(off)
    assert (ratio.p20, ratio.p50, ratio.p80) == (2, 2, 2)
    assert on.tpot_ms().p50 == 5.5


def test_spread_is_median_and_fifths() -> None:
    """The percentiles interpolate between the values; one value is its own spread; none is refused."""
    assert (spread([5, 1, 2, 4, 3, 6]).p20, spread([5, 1, 2, 4, 3, 6]).p50) == (2, 3.5)
    assert spread([7]).p80 == 7
    with pytest.raises(InputError, match="at least one value"):
        spread([])
    with pytest.raises(InputError, match="rounds: expected at least 1, got 0"):
        interleave(list, [], rounds=0)


def test_overhead_times_the_hooks_and_leaves_none() -> None:
    """A hook that waits is measured in each layer, and the clocks are gone afterward."""
    model = tiny_model("qwen3_moe")
    tokens = random_tokens(model, 2, 8)
    stepper = Stepper(model, tokens[:, :4], tokens[:, 4:])
    layers = find_experts(model)
    busy = torch.rand(300, 300)
    hooks = [layer.module.register_forward_pre_hook(lambda *_: (busy @ busy, None)[1]) for layer in layers]
    overhead = measure_overhead(model, stepper.block)
    for hook in hooks:
        hook.remove()
    assert overhead.us_per_layer > 20
    assert overhead.ms_per_step > overhead.us_per_layer / 1e3
    assert all(not layer.module._forward_pre_hooks for layer in layers)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_experts(name: str) -> None:
    """Each preset's config builds a model whose experts have the published E, K and width."""
    published = {
        "qwen3-30b-a3b": (128, 8, 768), "qwen1.5-moe-a2.7b": (60, 4, 1408), "deepseek-v2-lite": (64, 6, 1408),
        "mixtral-8x7b": (8, 2, 14336), "olmoe-1b-7b": (64, 8, 1024), "tiny": (16, 4, 32),
    }  # fmt: skip
    from transformers import AutoModelForCausalLM

    config = shape_config(name, layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    (layer,) = find_experts(model)
    width = max(p.shape[-1] for n, p in layer.module.named_parameters() if "down" in n)
    assert (layer.num_experts, layer.top_k, width) == published[name]


def test_random_factors_make_gains_like_those_of_trained_models() -> None:
    """With factors, similarities are small and a least gain gives slots up; without, there are none."""
    model = random_model("tiny", dtype=torch.float32)
    table = random_table(model, factors=True)
    for layer in table.layers.values():
        others = layer.similarity[~torch.eye(layer.num_experts, dtype=torch.bool)]
        assert 0.1 < others.max() <= 0.2
        assert layer.scale is not None
    assert all(layer.scale is None for layer in random_table(model).layers.values())
    rows = random_tokens(model, 8, 4)
    computed = []
    for least in (0.0, 0.02):
        with apply(model, table, active_experts=6, min_gain=least, flatten="off") as handle:
            model.generate(rows, max_new_tokens=3, do_sample=False, pad_token_id=0)
            computed.append(sum(layer.slots_computed for layer in handle.stats()))
    assert 0 < computed[1] < computed[0]


def test_random_tables_fit_their_model_and_tokens_repeat() -> None:
    """The random table passes the model's own check; the same seed gives the same tokens and weights."""
    model = random_model("tiny", layers=1, dtype=torch.float32)
    random_table(model).check(identify(model))
    assert torch.equal(random_tokens(model, 2, 5, seed=3), random_tokens(model, 2, 5, seed=3))
    again = random_model("tiny", layers=1, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.config._experts_implementation == "eager"
    with pytest.raises(InputError, match="at least 1, got 0 and 5"):
        random_tokens(model, 0, 5)


def test_a_setting_that_changes_nothing_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many blocks it is timed in, one line says why, and the record does too."""
    model = tiny_model("qwen3_moe")
    subject = Subject(model, random_table(model), {})
    settings = [
        parse_spec(text) for text in ("off", "sere:select_top_k=1,active_experts=15", "sere:active_experts=0")
    ]
    plan = BenchPlan(settings=settings, batch_sizes=[2], prompt=4, steps=2, rounds=2)
    records = list(bench(subject, plan))
    reasons = [record["nothing_changed"] for record in records]
    assert reasons[0] is None
    assert reasons[2] is None
    assert "active_experts=15 is not below what these batches read" in reasons[1]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"sere: B=2 sere:select_top_k=1,active_experts=15: {reasons[1]}"
