"""The plug-in's parts that need no engine: tiers, rows, tables, layers, model runners, statistics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sere.config import RerouteConfig
from sere.errors import ConfigError, TableMismatch, UnsupportedEngine
from sere.integrations.vllm import engine_stats
from sere.integrations.vllm.options import Options
from sere.integrations.vllm.start import checks, tables
from sere.integrations.vllm.tiers import PADDING, PROTECTED, parse_tier
from sere.integrations.vllm.worker import change, router_hook
from sere.integrations.vllm.worker.request_book import RequestBook
from sere.integrations.vllm.worker.row_budgets import RowSignal
from sere.integrations.vllm.worker.step_counts import StepCounts
from sere.integrations.vllm.worker.steps import Steps
from sere.reroute import prepare_layer, reroute
from sere.similarity.layer import LayerSimilarity
from tests.support.vllm.standins import engine_config, new, step


def budgets(book: RequestBook, output: Any, counts: dict[str, int], **options: Any) -> list[int]:
    rows = book.budgets(output, list(counts), np.array(list(counts.values())), 2, **options)
    return rows.budgets.tolist()


@pytest.fixture
def book() -> RequestBook:
    known = RequestBook()
    known.update(step(news=(new("a", 5), new("b", 8, "off"), new("c", 3, {"select_top_k": 1}), new("d", 4))))
    return known


def test_decoding_and_prompts(book: RequestBook) -> None:
    """In the batch's order: decoding requests get their S; prompts, their pieces and "off" are protected."""
    output = step(news=(new("e", 2),), cached={"a": 5, "b": 9, "c": 3, "d": 2})
    book.update(output)
    counts = {"c": 1, "a": 1, "d": 2, "b": 1, "e": 2}
    assert budgets(book, output, counts) == [1, 2, PROTECTED, PROTECTED, PROTECTED, PROTECTED, PROTECTED]


def test_last_token_of_a_prompt_is_prompt(book: RequestBook) -> None:
    """A piece of a prompt of one token, as after a hit of the prefix cache, is not a decoded row."""
    assert budgets(book, step(cached={"a": 4}), {"a": 1}) == [PROTECTED]


def test_drafted_tokens_are_decoded(book: RequestBook) -> None:
    """Rows that verify drafted tokens are decoded; more rows than drafted tokens and one are not."""
    output = step(cached={"a": 6, "d": 4}, drafts={"a": [1, 2]})
    assert budgets(book, output, {"a": 3, "d": 3}) == [2, 2, 2, *[PROTECTED] * 3]


def test_preempted_request_is_computed_again_exactly(book: RequestBook) -> None:
    """After a preemption a request's rows are protected until it decodes again."""
    assert budgets(book, step(cached={"a": 0}), {"a": 7}) == [PROTECTED] * 7
    assert budgets(book, step(cached={"a": 7}), {"a": 1}) == [2]


def test_all_phases(book: RequestBook) -> None:
    """With ``phases="all"`` rows of prompts are re-routed too, but for requests that said "off"."""
    output = step(news=(new("e", 2),), cached={"b": 2})
    book.update(output)
    assert budgets(book, output, {"e": 2, "b": 2}, all_phases=True) == [2, 2, PROTECTED, PROTECTED]


def test_book_forgets_finished_requests(book: RequestBook) -> None:
    """Finished and aborted requests leave nothing behind; an unknown one is protected."""
    book.update(step(finished=("a", "b", "c", "d", "never seen")))
    assert len(book) == 0
    assert budgets(book, step(cached={"a": 9}), {"a": 1}) == [PROTECTED]


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (None, None), ("off", PROTECTED), (3, 3), ({"select_top_k": 8}, 8), ('{"select_top_k": 8}', 8),
        ("4", 4), (10**12, PROTECTED),
    ],
)  # fmt: skip
def test_tiers(value: Any, budget: int | None) -> None:
    """A tier is "off", S, or a mapping with S, which may be JSON text."""
    assert parse_tier({"sere": value, "other": 1}) == budget


@pytest.mark.parametrize("value", ["of", "", 0, -1, True, 1.5, [1], {}, {"select_top_k": "1"}, "[1]", "null"])
def test_wrong_tiers(value: Any) -> None:
    """What is no tier is refused with what would be."""
    with pytest.raises(ConfigError, match=r'sere: expected "off", or \{"select_top_k": S\}'):
        parse_tier({"sere": value})


def test_wrong_key_of_a_tier() -> None:
    """A request cannot set anything but S; the nearest name is given."""
    with pytest.raises(ConfigError, match=r"a request cannot set 'select_topk'; did you mean 'select_top_k'"):
        parse_tier({"sere": {"select_topk": 2}})


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ({"seree": "off"}, True), ({"Sere": 2}, True), ({"sere ": {"select_top_k": 2}}, True),
        ({"seree": "fast"}, False), ({"serve": None}, False), ({"other": "off"}, False), (None, False),
    ],
)  # fmt: skip
def test_misspelled_tier(extra: Any, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier under a name like "sere", which nothing would read, is refused; what others send is not."""
    monkeypatch.setattr(checks, "_refusal", lambda: ConfigError)
    if refused:
        with pytest.raises(ConfigError, match=f"stands under 'sere', got {next(iter(extra))!r}"):
            checks.check_tier(extra)
    else:
        checks.check_tier(extra)


@given(st.lists(st.lists(st.sampled_from([1, 2, PROTECTED]), max_size=8), max_size=6), st.booleans())
def test_signal_is_the_last_step(steps: list[list[int]], may_skip: bool) -> None:
    """The device holds the last step's budgets and padding behind them; exact steps are all padding."""
    signal = RowSignal(10, torch.device("cpu"), may_skip=may_skip)
    place = signal.budget.data_ptr()
    for rows in steps:
        active = signal.announce(np.array(rows, dtype=np.int32))
        assert active == any(row != PROTECTED for row in rows)
        assert signal.budget.tolist() == (rows if active else []) + [PADDING] * (10 - len(rows) * active)
        assert signal.skip == (may_skip and not active)
    signal.exact()
    assert signal.budget.tolist() == [PADDING] * 10
    assert signal.budget.data_ptr() == place


def test_padding_everywhere_changes_nothing() -> None:
    """A step whose rows are all padding leaves ids and weights as they were, bit for bit."""
    signal = RowSignal(6, torch.device("cpu"), may_skip=False)
    ids, weights = torch.randint(0, 8, (6, 2)), torch.rand(6, 2)
    result = reroute(
        ids, weights, torch.rand(8, 8).fill_diagonal_(1.0), select_top_k=1, row_budgets=signal.at(6)
    )
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


def test_coverage(any_table: Any) -> None:
    """A model without a layer of the table is refused, but for the part that a pipeline stage holds."""
    tables.check_coverage(any_table, {0, 1}, stage=None)
    tables.check_coverage(any_table, {1}, stage=range(1, 4))
    # A stage of dense layers.
    tables.check_coverage(any_table, set(), stage=range(2, 4))
    for found, stage in (({1}, None), (set(), range(1, 4)), ({1}, range(2)), (set(), None)):
        with pytest.raises(TableMismatch, match="but the engine built MoE layers"):
            tables.check_coverage(any_table, found, stage=stage)


def test_layer_of_another_size(any_table: Any) -> None:
    """A layer with another number of experts than the table has for it is refused by name."""
    tables.check_layer(any_table, 0, "model.layers.0.mlp.experts", E=16)
    with pytest.raises(
        TableMismatch, match=r"model.layers.0.mlp.experts: .* 16 experts in layer 0, but this layer has 8"
    ):
        tables.check_layer(any_table, 0, "model.layers.0.mlp.experts", E=8)


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.experts", "language_model.model.layers.3.block.experts"]
)
def test_layer_index(name: str) -> None:
    """The index is read from the layer's name; a name without one is refused."""
    assert router_hook.layer_index(name) == 3
    with pytest.raises(UnsupportedEngine, match="expected a decoder-layer index"):
        router_hook.layer_index("experts")


def test_router_of_another_kind() -> None:
    """A router without the method that all of vLLM's have is refused by name."""
    with pytest.raises(UnsupportedEngine, match="its router SimpleNamespace has no _compute_routing"):
        router_hook.intercept(SimpleNamespace(), SimpleNamespace(name="layer"))  # type: ignore[arg-type]


class Announced:
    """A session that records what is announced."""

    def __init__(self) -> None:
        self.config = RerouteConfig(select_top_k=2)
        self.options = Options(reroute=self.config, log_seconds=0)
        self.enabled = True
        self.signal = RowSignal(8, torch.device("cpu"), may_skip=False)
        self.counts, self.guard = StepCounts(), SimpleNamespace(step=lambda: None)
        self.vllm_config = engine_config(rank=0)


class RunnerV2:
    """vLLM's V2 model runner in miniature: the batch's order comes back from ``prepare_inputs``."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def execute_model(self, scheduler_output: Any, *, dummy_run: bool = False) -> None:  # noqa: D102
        if not dummy_run:
            self.prepare_inputs(scheduler_output, object(), object(), 0)

    def prepare_inputs(self, scheduler_output: Any, *_: Any) -> Any:  # noqa: D102
        return self.batch

    def _dummy_run(self, rows: int) -> None:
        self.execute_model(step(), dummy_run=True)


def test_second_model_runner() -> None:
    """V2: budgets follow the order of the batch that its preparation returns; a dummy step is exact."""
    batch = SimpleNamespace(req_ids=["b", "a"], num_scheduled_tokens=np.array([1, 1]), num_tokens=2)
    session, runner = Announced(), RunnerV2(batch)
    Steps(runner, session).watch()  # type: ignore[arg-type]
    output = step(news=(new("a", 3), new("b", 4, 1)))
    runner.execute_model(output)
    assert session.signal.budget.tolist() == [PADDING] * 8
    runner.execute_model(step(cached={"a": 3, "b": 4}))
    assert session.signal.budget.tolist() == [1, 2, *[PADDING] * 6]
    runner._dummy_run(4)
    assert session.signal.budget.tolist() == [PADDING] * 8
    assert session.counts == StepCounts(rerouted=1, prompts=1, least_budget=1)


def test_drafts_dropped_on_the_device() -> None:
    """V2: where the device drops drafted tokens, rows cannot be told apart: the step passes, exact."""
    batch = SimpleNamespace(req_ids=["a"], num_scheduled_tokens=np.array([3]), num_tokens=2)
    session, runner = Announced(), RunnerV2(batch)
    Steps(runner, session).watch()  # type: ignore[arg-type]
    runner.execute_model(step(news=(new("a", 3),)))
    runner.execute_model(step(cached={"a": 3}, drafts={"a": [1, 2]}))
    assert session.signal.budget.tolist() == [PADDING] * 8
    assert session.counts == StepCounts(unknown=2)


def test_unknown_model_runner() -> None:
    """A model runner that shows no batch is refused by name."""
    with pytest.raises(UnsupportedEngine, match="SimpleNamespace: expected vLLM's GPUModelRunner"):
        Steps(SimpleNamespace(), Announced()).watch()  # type: ignore[arg-type]


def test_log_line_of_nothing() -> None:
    """Before the first step the log line says so."""
    found = engine_stats.EngineStats(True, {}, 0, {"prompts": 3}, ())
    assert engine_stats.log_line(found) == "no step re-routed, 3 passed"


def test_new_settings_reach_every_tensor_of_a_layer() -> None:
    """A new threshold and keep-list are written over all that a backend reads, at the same addresses."""
    layer = LayerSimilarity(
        torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0)
    )
    before, after = (
        RerouteConfig(select_top_k=1, threshold=0.2),
        RerouteConfig(select_top_k=1, threshold=0.7, keep={0: (3,)}),
    )
    prepared = prepare_layer(layer, before)
    expected = prepare_layer(layer, after, keep=(3,)).tensors()
    session: Any = SimpleNamespace(
        table=SimpleNamespace(layers={0: layer}), layers={0: SimpleNamespace(index=0, prepared=prepared)}
    )
    addresses = {name: tensor.data_ptr() for name, tensor in prepared.tensors().items()}
    change._update_layers(session, after)
    for name, tensor in prepared.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert {name: tensor.data_ptr() for name, tensor in prepared.tensors().items()} == addresses
