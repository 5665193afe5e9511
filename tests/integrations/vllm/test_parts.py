"""The plug-in's parts that need no engine: settings, tiers, rows, kernels, versions, features, tables."""

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
from sere.integrations.vllm import features, frontend, kernels, live, seam, stats, tables, versions
from sere.integrations.vllm.counts import StepCounts
from sere.integrations.vllm.options import Options, misplaced, section
from sere.integrations.vllm.requests import PADDING, PROTECTED, RequestBook, parse_tier
from sere.integrations.vllm.rows import RowSignal
from sere.integrations.vllm.worker import Steps
from sere.reroute import make_plan, reroute
from sere.reroute.types import Neighbours
from sere.similarity.layer import LayerSimilarity
from tests.integrations.vllm.standins import engine_config, new, step


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
    monkeypatch.setattr(frontend, "_refusal", lambda: ConfigError)
    if refused:
        with pytest.raises(ConfigError, match=f"stands under 'sere', got {next(iter(extra))!r}"):
            frontend.check_tier(extra)
    else:
        frontend.check_tier(extra)


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
        ids, weights, torch.rand(8, 8).fill_diagonal_(1.0), select_top_k=1, row_budget=signal.at(6)
    )
    assert torch.equal(result.ids, ids)
    assert torch.equal(result.weights, weights)


def test_kernel_that_bears_duplicates_keeps_the_settings() -> None:
    """The CPU kernel takes any mode but sentinels."""
    for merge in ("none", "same", "distinct"):
        config = RerouteConfig(select_top_k=1, merge=merge)
        assert kernels.fit_to_kernel(config, "CPUUnquantizedExperts", K=4, merge_given=True) == config


@pytest.mark.parametrize("kernel", ["OAITritonExperts", "TrtLlmFp8ExpertsModular", "SomethingNew", None])
def test_other_kernels_get_distinct_rows(kernel: str | None) -> None:
    """A kernel that may not bear duplicates gets distinct experts, enough of them, and no sentinel."""
    config = kernels.fit_to_kernel(RerouteConfig(select_top_k=1), kernel, K=4, merge_given=False)
    assert (config.merge, config.min_active, config.sentinel) == ("distinct", 4, None)
    ids, weights = torch.stack([torch.randperm(8)[:4] for _ in range(3)]), torch.rand(3, 4)
    result = reroute(
        ids, weights, torch.rand(8, 8).fill_diagonal_(1.0),
        select_top_k=1, merge="distinct", min_active=config.min_active,
    )  # fmt: skip
    assert all(len(set(row)) == 4 for row in result.ids.tolist())


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
        kernels.fit_to_kernel(RerouteConfig(select_top_k=1, **options), kernel, K=4, merge_given=True)
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
    """Within the context a kernel that routes inside is not supported; afterwards all is as before."""
    original = Experts.__dict__["is_supported_config"]
    with kernels.decomposed_kernels(Experts):
        supported, reason = Monolithic.is_supported_config(Monolithic, None)
        assert not supported
        assert "decomposed" in str(reason)
        assert Experts.is_supported_config(Experts, None) == (True, None)
    assert Experts.__dict__["is_supported_config"] is original
    assert Monolithic.is_supported_config(Monolithic, None) == (True, None)


def test_monolithic_layer_is_named() -> None:
    """The error names layer, kernel and the flag to set."""
    with pytest.raises(
        UnsupportedEngine, match=r"layers.3.mlp.experts: .* Monolithic .*--moe-backend triton"
    ):
        kernels.refuse_monolithic("model.layers.3.mlp.experts", object(), Monolithic())


@pytest.mark.parametrize(
    ("version", "device", "fine"),
    [
        ("0.32.0", "cpu", True), ("0.30.1", "cpu", True), ("0.29.0", "cpu", False), ("0.20.0", "cuda", True),
        ("0.33.0", "cuda", True), ("0.34.0", "cuda", False), ("0.19.1", "cuda", False), (None, "cpu", False),
        ("1.0", "cuda", False), ("0.33.0", "cpu", False),
    ],
)  # fmt: skip
def test_versions(version: str | None, device: str, fine: bool) -> None:
    """Versions that were read or run pass; on a CPU those whose kernels leave routing to the router."""
    versions.check_version(version, device_type=device, allow_untested=True)
    if fine:
        versions.check_version(version, device_type=device, allow_untested=False)
    else:
        with pytest.raises(UnsupportedEngine, match=f"vLLM {version or 'of unknown version'}"):
            versions.check_version(version, device_type=device, allow_untested=False)


@pytest.mark.parametrize(
    ("holder", "value", "text", "certain"),
    [
        (
            "cache_config",
            {"kv_sharing_fast_prefill": True},
            "kv_sharing_fast_prefill: its later layers",
            True,
        ),
        ("model_config", {"is_diffusion": True}, "block diffusion: the model computes a block", True),
        ("diffusion_config", {}, "block diffusion: the model computes a block", True),
        ("speculative_config", {"enable_adaptive_verification": True}, "adaptive verification of dr", False),
    ],
)
def test_features_that_hide_decode_steps(
    holder: str, value: dict[str, Any], text: str, certain: bool
) -> None:
    """What would give rows the budgets of others, or re-route nothing, is refused by its name."""
    config = engine_config()
    setattr(config, holder, SimpleNamespace(**value))
    with pytest.raises(UnsupportedEngine, match=text):
        features.check_features(config, allow_untested=False)
    if certain:
        with pytest.raises(UnsupportedEngine, match=text):
            features.check_features(config, allow_untested=True)
    else:
        features.check_features(config, allow_untested=True)


@pytest.mark.parametrize(
    ("holder", "value", "text"),
    [
        ("model_config", {"runner_type": "pooling"}, "this engine embeds or classifies (runner 'pooling')"),
        ("kv_transfer_config", {"kv_role": "kv_producer"}, "turn re-routing on in the engine that decodes"),
        ("model_config", {"runner_type": "generate"}, None),
        ("kv_transfer_config", {"kv_role": "kv_both"}, None),
    ],
)
def test_engines_without_decode_steps(holder: str, value: dict[str, Any], text: str | None) -> None:
    """An engine that only reads prompts is warned of at its start, unless prompts are re-routed too."""
    config = engine_config()
    setattr(config, holder, SimpleNamespace(**value))
    warnings = list(features.surprises(config, RerouteConfig(select_top_k=1)))
    assert len(warnings) == (text is not None)
    assert all(str(text) in warning for warning in warnings)
    assert not list(features.surprises(config, RerouteConfig(select_top_k=1, phases="all")))


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        ({"enable_dbo": True}, "dual batch overlap: each half of the batch"),
        ({"use_sequence_parallel_moe": True}, "sequence-parallel MoE: each rank sees a part"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism: each rank sees a part"),
        ({"data_parallel_size": 2}, "data parallelism: where an expert kernel gathers"),
    ],
)
def test_refused_features(parallel: dict[str, Any], text: str) -> None:
    """Each feature that mixes up rows is refused with its reason; plain tensor parallelism is not."""
    with pytest.raises(UnsupportedEngine, match=text):
        features.check_features(engine_config(**parallel), allow_untested=False)
    features.check_features(engine_config(tensor_parallel_size=2), allow_untested=False)


def test_untested_feature_may_be_allowed() -> None:
    """What was only never tried can be allowed; what would be wrong cannot."""
    features.check_features(engine_config(data_parallel_size=2), allow_untested=True)
    with pytest.raises(UnsupportedEngine, match="dual batch overlap"):
        features.check_features(engine_config(enable_dbo=True), allow_untested=True)


def test_options() -> None:
    """Settings of routing and of the plug-in stand side by side; whether merge was given is remembered."""
    options = Options.from_mapping({"select_top_k": 2, "threshold": 0.3, "log_seconds": 5, "merge": "none"})
    assert options.reroute == RerouteConfig(select_top_k=2, threshold=0.3)
    assert (options.log_seconds, options.merge_given, options.enabled) == (5, True, True)
    assert not Options.from_mapping({"select_top_k": 2}).merge_given
    assert section(SimpleNamespace(additional_config={"sere": 1})) == 1
    assert section(SimpleNamespace(additional_config=object())) is None


SETTINGS = {"select_top_k": 2}


@pytest.mark.parametrize(
    ("additional", "words"),
    [
        ({"seree": SETTINGS}, ["'seree'", "this engine will not re-route"]),
        ({"SERE": True}, ["'SERE'", "this engine will not re-route"]),
        ({"rerouting": SETTINGS}, ["'rerouting'", "this engine will not re-route"]),
        (SETTINGS | {"threshold": 0.3}, ["'select_top_k'", "this engine will not re-route"]),
        ({"sere": SETTINGS, "min_active": 8}, ["'min_active'", "these are not read"]),
        ({"sere": None}, ["is null", "this engine will not re-route"]),
    ],
)
def test_misplaced_settings(additional: dict[str, Any], words: list[str]) -> None:
    """Settings that stand where nothing reads them are named, with the place where they belong."""
    warning = str(misplaced(SimpleNamespace(additional_config=additional)))
    assert all(word in warning for word in words)
    assert '{"select_top_k": 2, "threshold": 0.3}' in warning


@pytest.mark.parametrize(
    "additional",
    [
        {},
        None,
        object(),
        {"sere": SETTINGS},
        {"gdn_prefill_backend": "triton", "threshold": 1, "user": {"a": 1}},
    ],
)
def test_settings_of_others(additional: Any) -> None:
    """Settings in their place, and those of others, are not warned of."""
    assert misplaced(SimpleNamespace(additional_config=additional)) is None


def test_true_is_no_settings() -> None:
    """``{"sere": true}`` is refused with what to write, and with how to leave an engine alone."""
    with pytest.raises(
        ConfigError, match=r'\{"select_top_k": 2.*, got True; .* that is not to re-route has no'
    ):
        Options.from_mapping(True)


def test_unknown_option_of_the_plug_in() -> None:
    """A misspelled name is refused with the nearest of all names, the plug-in's own among them."""
    with pytest.raises(ConfigError, match="unknown setting 'log_second'; did you mean 'log_seconds'"):
        Options.from_mapping({"select_top_k": 2, "log_second": 3})


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
    assert seam.layer_index(name) == 3
    with pytest.raises(UnsupportedEngine, match="expected a decoder-layer index"):
        seam.layer_index("experts")


def test_router_of_another_kind() -> None:
    """A router without the method that all of vLLM's have is refused by name."""
    with pytest.raises(UnsupportedEngine, match="its router SimpleNamespace has no _compute_routing"):
        seam.intercept(SimpleNamespace(), SimpleNamespace(name="layer"))  # type: ignore[arg-type]


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
    found = stats.EngineStats(True, {}, 0, {"prompts": 3}, ())
    assert stats.log_line(found) == "no step re-routed, 3 passed"


def test_new_settings_reach_every_tensor_of_a_layer() -> None:
    """A new threshold and keep-list are written over all that a backend reads, at the same addresses."""
    layer = LayerSimilarity(
        torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1.0)
    )
    before, after = (
        RerouteConfig(select_top_k=1, threshold=0.2),
        RerouteConfig(select_top_k=1, threshold=0.7, keep={0: (3,)}),
    )
    plan = make_plan(layer, before)
    expected = make_plan(layer, after, keep=(3,)).neighbours
    session: Any = SimpleNamespace(
        table=SimpleNamespace(layers={0: layer}), layers={0: SimpleNamespace(index=0, plan=plan)}
    )
    addresses = [plan.neighbours.lists.data_ptr(), plan.neighbours.position.data_ptr()]
    live._write_neighbours(session, after)
    for name in ("order", "count", "position", "lists", "keep"):
        assert torch.equal(getattr(plan.neighbours, name), getattr(expected, name)), name
    assert set(Neighbours.__slots__) == {"order", "count", "position", "lists", "keep", "scale"}
    assert [plan.neighbours.lists.data_ptr(), plan.neighbours.position.data_ptr()] == addresses
