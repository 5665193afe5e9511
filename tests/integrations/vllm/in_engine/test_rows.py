"""Which rows are re-routed and which are exact: one eager engine, watched from inside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from sere.engines.forced_tokens import PROCESSOR
from sere.engines.in_process import state_of, worker_of
from sere.errors import ConfigError
from sere.eval.engine_likelihoods import engine_log_likelihoods
from sere.eval.likelihoods import Continuation
from sere.integrations.vllm import configure, read_expert_counts, read_stats
from sere.integrations.vllm.engine_stats import log_line
from sere.integrations.vllm.prometheus import Collector
from sere.integrations.vllm.tiers import PROTECTED
from sere.reroute.constants import LAYER_BUDGET, PADDING_BUDGET
from tests.support.expert_counts import RecordedRouter
from tests.support.vllm.engines import engine, generate, prompts, sampling
from tests.support.vllm.watching import announced, kinds, watched

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

K = 4


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[Any]:
    """An engine of at most 16 tokens a step, so that long prompts come in pieces beside decoded rows."""
    settings = {"select_top_k": 1, "count_experts": True}
    # Without given tokens the processor leaves a request alone.
    with engine(model, settings, max_num_batched_tokens=16, logits_processors=[PROCESSOR]) as llm:
        yield llm


@pytest.fixture
def llm(shared: Any) -> Any:
    configure(shared, select_top_k=1, threshold=0.0, active_experts=0, layers={}, keep={}, enabled=True)
    read_stats(shared, reset=True)
    return shared


def test_mixed_steps_keep_rows_of_prompts(llm: Any) -> None:
    """With chunked prefill, rows of prompts keep their experts while decoded rows of the same step do not."""
    with watched(llm) as seen:
        generate(llm, [*prompts(4), *prompts(3, length=60)], tokens=24)
    mixed = [step for step in seen if {"protected", "decoded"} <= kinds(step[0])]
    assert len(mixed) > 5
    for budget, ids, _, new_ids in mixed:
        kept = budget >= K
        assert torch.equal(new_ids[kept], ids[kept])
    assert any(not torch.equal(ids, new_ids) for _, ids, _, new_ids in mixed)


def test_uses_of_each_expert(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of plain loops over what each router got and gave, rows of prompts among it."""
    routers = []
    for layer in state_of(llm).layers.values():
        routers.append(RecordedRouter(layer.router, layer.shape.num_experts))
        monkeypatch.setattr(layer, "router", routers[-1])
    generate(llm, [*prompts(4), *prompts(3, length=60)], tokens=24)
    counts = read_expert_counts(llm)
    assert [[list(one.chosen), list(one.ran)] for one in counts] == [router.found for router in routers]
    slots = [layer.steps * layer.rows * K for layer in read_stats(llm, reset=True).layers]
    assert [sum(one.chosen) for one in counts] == pytest.approx(slots)
    assert all(one.chosen != one.ran for one in counts)
    assert not any(map(any, ((*one.chosen, *one.ran) for one in read_expert_counts(llm))))


def test_each_row_is_its_own_requests(llm: Any) -> None:
    """Budgets follow the runner's order of requests: S of each request where requests of four tiers mix."""
    tiers: list[Any] = [None, "off", {"select_top_k": 2}, 3] * 2
    params = [sampling(tokens=16, extra_args=None if tier is None else {"sere": tier}) for tier in tiers]
    wanted = [LAYER_BUDGET, PROTECTED, 2, 3] * 2
    state, runner = state_of(llm), worker_of(llm).model_runner
    seen: list[tuple[list[str], list[int]]] = []

    def record(_: Any, names: list[str], counts: Any, announce: Callable[[], None]) -> None:
        # V2 keeps no batch: the one that its preparation returned is the truth.
        batch = getattr(runner, "input_batch", None)
        announce()
        seen.append((list(batch.req_ids if batch else names), state.budgets.at(int(sum(counts))).tolist()))

    with announced(llm, record):
        llm.generate(prompts(8), params, use_tqdm=False)
    # vLLM numbers the requests in the order in which they came.
    order = sorted({name for names, _ in seen for name in names}, key=lambda name: int(name.split("-")[0]))
    decoding = [step for step in seen if len(step[0]) == len(step[1]) == 8 and PADDING_BUDGET not in step[1]]
    assert len(decoding) > 5
    for names, budgets in decoding:
        for name, budget in zip(names, budgets, strict=True):
            assert budget in (wanted[order.index(name)], PROTECTED)
    assert any(sorted(budgets) == sorted(wanted) for _, budgets in decoding)


def test_protected_request_keeps_its_experts(llm: Any) -> None:
    """A request with ``"off"`` among others that are re-routed keeps exactly the experts of its router."""
    params = [sampling(tokens=16, extra_args={"sere": "off"}), *[sampling(tokens=16)] * 5]
    with watched(llm) as seen:
        llm.generate(prompts(6), params, use_tqdm=False)
    steps = [s for s in seen if {"protected", "decoded"} <= kinds(s[0]) and len(s[0]) == 6]
    assert steps
    for budget, ids, weights, new_ids in steps:
        row = budget >= K
        assert row.sum() == 1
        assert torch.equal(new_ids[row], ids[row])
        assert not torch.equal(new_ids[~row], ids[~row])
        assert torch.isfinite(weights).all()


def test_prefill_is_exact(llm: Any) -> None:
    """Log-probabilities of prompts and of the first token are those without re-routing, to the last bit."""

    def read() -> list[Any]:
        outputs = llm.generate(prompts(6), sampling(tokens=1, prompt_logprobs=3, logprobs=5), use_tqdm=False)
        return [
            [
                {token: value.logprob for token, value in entry.items()}
                for entry in (*filter(None, output.prompt_logprobs), *output.outputs[0].logprobs)
            ]
            for output in outputs
        ]

    active = read()
    assert read_stats(llm, reset=True).steps_rerouted == 0
    configure(llm, enabled=False)
    assert read() == active


def test_given_tokens_are_scored_in_decode_steps(llm: Any) -> None:
    """While off they have the log-likelihoods of prefill, if prompts are read in parts, too; else others."""
    asked = [
        Continuation(prompt["prompt_token_ids"], [(37 * i + 11 * j) % 128 for j in range(6)])
        for i, prompt in enumerate(prompts(6, length=20))
    ]
    changed = [one.nats for one in engine_log_likelihoods(llm, asked, concurrency=4)]
    assert read_stats(llm).layers[0].slots_rerouted > 0
    configure(llm, enabled=False)
    found = [one.nats for one in engine_log_likelihoods(llm, asked, concurrency=4)]
    texts = [{"prompt_token_ids": one.text} for one in asked]
    outputs = llm.generate(texts, sampling(tokens=1, prompt_logprobs=1), use_tqdm=False)
    exact = [
        sum(
            output.prompt_logprobs[position][one.text[position]].logprob
            for position in range(len(one.context), len(one.text))
        )
        for one, output in zip(asked, outputs, strict=True)
    ]
    # The engine computes in bfloat16.
    assert found == pytest.approx(exact, abs=0.1)
    assert all(one != before for one, before in zip(changed, found, strict=True))


def test_settings_change_while_requests_run(llm: Any) -> None:
    """Another S, ρ and M, also of one layer, off and on hold from the next step on."""
    llm_engine = llm.llm_engine
    for index, prompt in enumerate(prompts(6)):
        llm_engine.add_request(f"live-{index}", prompt, sampling(tokens=60))
    for _ in range(4):
        llm_engine.step()
    counts = []
    for changes in (
        {},
        {"select_top_k": 3},
        {"select_top_k": 1, "threshold": 1.0},
        {"threshold": 0.0},
        {"enabled": False},
        {"enabled": True, "active_experts": 7},
        {"active_experts": {1: 9}},
    ):
        settings = configure(llm, **changes)
        assert all(settings[name] == value for name, value in changes.items() if not isinstance(value, dict))
        read_stats(llm, reset=True)
        for _ in range(4):
            llm_engine.step()
        counts.append(read_stats(llm, reset=True))
    while llm_engine.has_unfinished_requests():
        llm_engine.step()
    after = [stats.layers[0].distinct_after for stats in counts]
    assert after[0] < after[1]
    assert counts[2].layers[0].slots_rerouted == 0
    assert counts[3].layers[0].slots_rerouted > 0
    assert counts[4].steps_rerouted == 0
    assert counts[4].steps_skipped == 4
    assert [layer.distinct_after for layer in counts[5].layers] == [7, 7]
    assert [layer.distinct_after for layer in counts[6].layers] == [7, 9]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cap": True}, "'cap' cannot be changed while the engine runs"),
        ({"tier": "fast"}, "tier: the table has no tier 'fast'; it has none"),
        ({"active_experts": -1}, "active_experts: expected "),
        ({"select_top_k": 0}, "select_top_k: expected an integer of at least 1, got 0"),
        ({"threshold": -1}, "threshold: expected a number of at least 0"),
        ({"keep": {9: [1]}}, "keep: layer 9 has no similarities; the table has the layers 0, 1"),
        ({"keep": {0: [99]}}, "keep: layer 0 has the experts 0 to 15, got 99"),
        ({"enabled": "no"}, "enabled: expected true or false, got 'no'"),
    ],
)
def test_refused_changes(llm: Any, changes: dict[str, Any], text: str) -> None:
    """A change that is refused says why and leaves every setting as it was."""
    before = read_stats(llm).settings
    with pytest.raises(ConfigError) as refused:
        configure(llm, **{"select_top_k": 2} | changes)
    assert text in str(refused.value)
    assert read_stats(llm).settings == before


def test_kept_experts_stay(llm: Any) -> None:
    """An expert that is put on the keep list while serving is never replaced again."""
    configure(llm, keep={0: [0, 1, 2, 3, 4, 5, 6, 7]})
    with watched(llm) as seen:
        generate(llm, prompts(6))
    decoded = [step for step in seen if kinds(step[0]) == {"decoded"}]
    assert decoded
    for _, ids, _, new_ids in decoded:
        assert torch.equal(new_ids[ids < 8], ids[ids < 8])
    assert any(not torch.equal(ids, new_ids) for _, ids, _, new_ids in decoded)


@pytest.mark.parametrize("value", ["of", 0, True, [2], {"select_top": 2}, {"select_top_k": 0}, "{", "[1]"])
def test_bad_tier_is_refused(llm: Any, value: Any) -> None:
    """A value that is no tier is refused for its request; the engine goes on."""
    with pytest.raises(ConfigError, match="sere: "):
        generate(llm, prompts(1), extra_args={"sere": value})
    assert len(generate(llm, prompts(1), tokens=3)[0]) == 3


def test_finished_requests_are_forgotten(llm: Any) -> None:
    """After its requests have ended the plug-in remembers none of them."""
    generate(llm, prompts(8))
    generate(llm, prompts(1), tokens=1)
    assert len(worker_of(llm).sere_steps.book) <= 1


def test_dummy_steps_are_exact(llm: Any) -> None:
    """A dummy step between two steps announces no rows."""
    generate(llm, prompts(2))
    state = state_of(llm)
    worker_of(llm).model_runner._dummy_run(8)
    assert set(state.budgets.tensor.tolist()) == {PADDING_BUDGET}


def test_statistics_reach_log_and_prometheus(llm: Any) -> None:
    """The counters come out as one log line and, as sums, for Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest

    generate(llm, prompts(6))
    stats = read_stats(llm)
    assert (
        f"{stats.steps_rerouted} steps re-routed, {stats.steps_skipped} skipped; per layer and step"
        in log_line(stats)
    )
    registry = CollectorRegistry()
    registry.register(Collector(lambda: llm.collective_rpc("sere_stats")))
    text = generate_latest(registry).decode()
    assert f'sere_steps_total{{kind="rerouted"}} {float(stats.steps_rerouted)}' in text
    (experts,) = re.findall(r'^sere_layer_distinct_after_total\{layer="1"\} (\S+)$', text, re.MULTILINE)
    assert float(experts) == stats.layers[1].distinct_after * stats.layers[1].steps
