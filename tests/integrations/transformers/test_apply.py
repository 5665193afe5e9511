"""What ``apply`` refuses and how, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import sere.integrations.transformers as integration
from sere.config import RerouteConfig
from sere.errors import (
    AlreadyApplied,
    ConfigError,
    InputError,
    SereError,
    TableError,
    TableMismatch,
    UnsupportedModel,
)
from sere.integrations.transformers.inputs import cache_argument, find_cache
from sere.integrations.transformers.routers import scores_in
from sere.policies import Oea, Off, Sere, TopK
from sere.reroute import reroute
from sere.structure import find_experts
from tests.support.decoding import decode, hook_count, prompts, random_table
from tests.support.tiny import tiny_model

# By module object: the name of the package's ``apply`` is the function.
apply_module = import_module("sere.integrations.transformers.apply")


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("qwen3_moe")


def test_hooks_are_gone_after_an_exception(model: PreTrainedModel) -> None:
    """Leaving the block by an exception removes every hook, and the model is as it was."""
    plain, logits = decode(model, prompts())
    handle = integration.apply(model, random_table(model), select_top_k=1)
    assert hook_count(model) == 2 + 2 * 2, "two experts modules; before and after the model and its decoder"
    with pytest.raises(ZeroDivisionError), handle:
        raise ZeroDivisionError
    assert hook_count(model) == 0
    same, same_logits = decode(model, prompts())
    assert torch.equal(plain, same)
    assert torch.equal(logits, same_logits)


def test_nothing_is_patched(model: PreTrainedModel) -> None:
    """No attribute of any module and no forward of any class changes."""
    names = {name: set(vars(module)) for name, module in model.named_modules()}
    forwards = {type(m): type(m).forward for m in model.modules()}
    handle = integration.apply(model, random_table(model), select_top_k=1)
    decode(model, prompts())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == names
    assert all(kind.forward is forward for kind, forward in forwards.items())
    handle.remove()


def test_removing_twice_is_harmless_and_statistics_stay(model: PreTrainedModel) -> None:
    """The numbers of a run can be read after its block."""
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        assert handle.active
        decode(model, prompts())
    handle.remove()
    assert not handle.active
    assert handle.stats()[0].steps == 5
    handle.reset_stats()
    assert handle.stats()[0].steps == 0
    handle.enabled = False
    assert not handle.enabled


def test_applying_twice_is_refused(model: PreTrainedModel) -> None:
    """The text says to remove the first; its hooks stay as they are."""
    table = random_table(model)
    handle = integration.apply(model, table, select_top_k=1)
    hooks = hook_count(model)
    with pytest.raises(AlreadyApplied, match="re-routing is active on this model already; call remove"):
        integration.apply(model, table, select_top_k=2)
    assert hook_count(model) == hooks
    handle.remove()
    integration.apply(model, table, select_top_k=2).remove()


def test_a_table_of_another_model_is_refused(model: PreTrainedModel) -> None:
    """Both sides are named."""
    other = random_table(tiny_model("mixtral"))
    with pytest.raises(TableMismatch, match=r"'MixtralForCausalLM'.*'Qwen3MoeForCausalLM'"):
        integration.apply(model, other, select_top_k=1)
    deeper = random_table(tiny_model("qwen3_moe", num_hidden_layers=3))
    with pytest.raises(TableMismatch, match=r"3 MoE layers.*2 MoE layers"):
        integration.apply(model, deeper, select_top_k=1)
    assert hook_count(model) == 0


def test_the_table_may_be_a_path_or_stand_in_the_settings(model: PreTrainedModel, tmp_path: Path) -> None:
    """A path, a table and ``config.table`` lead to the same routing."""
    table, path = random_table(model), tmp_path / "table.safetensors"
    table.save(path)
    results = []
    for options in (
        {"table": table, "select_top_k": 1},
        {"table": path, "select_top_k": 1},
        {"table": str(path), "config": RerouteConfig(select_top_k=1)},
        {"config": RerouteConfig(select_top_k=1, table=str(path))},
    ):
        with integration.apply(model, **options) as handle:  # type: ignore[arg-type]
            results.append(decode(model, prompts())[0])
            assert handle.config is not None
            assert handle.config.select_top_k == 1
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_wrong_arguments_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    """Missing tables, unknown settings and contradictions each have their error; no hook stays."""
    table = random_table(model)
    settings = {"select_top_k": 1, "merge": "sentinel", "sentinel": -1}
    cases: list[tuple[dict[str, object], type[SereError], str]] = [
        ({"select_top_k": 1}, InputError, "expected a similarity table or its path, got None"),
        (
            {"table": 5, "select_top_k": 1},
            InputError,
            "expected a similarity table or its path, got int; make",
        ),
        (
            {"table": table, "config": settings},
            ConfigError,
            "config: expected a RerouteConfig, got dict; make",
        ),
        ({"policy": "topk"}, InputError, "policy: expected a routing rule of sere.policies, got str"),
        ({"table": table}, ConfigError, "select_top_k is missing"),
        ({"table": table, "select_topk": 1}, ConfigError, "did you mean 'select_top_k'"),
        ({"table": tmp_path / "no", "select_top_k": 1}, TableError, "no"),
        (
            {"table": table, "config": RerouteConfig(select_top_k=1), "threshold": 0.5},
            ConfigError,
            r"either config or settings by name, not both \(got threshold\)",
        ),
        ({"table": table, "policy": TopK(1)}, InputError, "either a policy, or a table"),
        ({"policy": TopK(1), "select_top_k": 1}, InputError, "either a policy, or a table"),
        ({"table": table, "select_top_k": 1, "keep": {7: [1]}}, ConfigError, "layer 7 has no similarities"),
        (
            {"table": table, "select_top_k": 1, "keep": {1: [3, 16]}},
            ConfigError,
            "keep: layer 1 has the experts 0 to 15, got 16",
        ),
        (
            {"table": table} | settings,
            ConfigError,
            r"merge: 'sentinel' \(sentinel -1\) .* Use merge='distinct' or merge='same'",
        ),
        (
            {"policy": Sere(table.layers, RerouteConfig.from_mapping(settings))},
            ConfigError,
            "merge: 'sentinel' .* fail or give wrong output",
        ),
        ({"table": table, "select_top_k": 1, "use_scale": True}, ConfigError, "the table has no scale"),
    ]
    for options, kind, text in cases:
        with pytest.raises(kind, match=text):
            integration.apply(model, **options)  # type: ignore[arg-type]
        assert hook_count(model) == 0


def test_a_model_without_experts_is_refused() -> None:
    """The text says that a dense model has nothing to re-route."""
    with pytest.raises(UnsupportedModel, match="no experts module found"):
        integration.apply(nn.Linear(2, 2), policy=TopK(1))


def test_what_is_no_model_is_refused(model: PreTrainedModel) -> None:
    """A path in the model's place is not looked up: the text says to load it first."""
    with pytest.raises(
        InputError, match="model: expected a model of Transformers in memory, got str; load it"
    ):
        integration.apply("folder", random_table(model), select_top_k=1)  # type: ignore[arg-type]


def apply_quietly(*args: Any, **options: Any) -> None:
    """Apply and remove: what is logged, `apply` itself said."""
    handle = integration.apply(*args, **options)
    handle.quiet = True
    handle.remove()


def test_settings_that_re_route_nothing_are_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """S = K as settings or in a policy: one line names K and what to do; below K there is none."""
    table, config = random_table(model), RerouteConfig(select_top_k=4, min_active=3, keep={0: (1,)})
    apply_module.warn_once.forget()
    apply_quietly(model, table, select_top_k=3)
    assert not caplog.records
    apply_quietly(model, table, config=config)
    apply_quietly(model, policy=Sere(table.layers, config))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "sere: Qwen3MoeForCausalLM: select_top_k=4 is not smaller than the model's top_k=4, so nothing will "
        "be re-routed; use a value from 1 to 3"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"threshold": 2},
            r"threshold=2 is above every similarity in the table \(at most \d\.\d+\), so nothing",
        ),
        (
            {"keep": {0: range(16), 1: range(16)}},
            "keep names every expert of every layer, so nothing will be re-routed; keep fewer",
        ),
    ],
    ids=["threshold", "keep"],
)
def test_settings_that_leave_no_substitute_are_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], text: str
) -> None:
    """A threshold above every similarity of the table, or all experts kept: said once, before any step."""
    apply_module.warn_once.forget()
    with integration.apply(model, random_table(model), select_top_k=1, **settings) as handle:
        decode(model, prompts())
        assert all(layer.slots_rerouted == 0 for layer in handle.stats())
        assert handle.why_nothing_changed() is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.match(f"sere: Qwen3MoeForCausalLM: {text}", line)
    caplog.clear()
    # One similarity at the threshold is enough to say nothing; a second handle is told in its own use.
    largest = max(
        float(layer.similarity.fill_diagonal_(0).max()) for layer in random_table(model).layers.values()
    )
    apply_quietly(model, random_table(model), select_top_k=1, threshold=largest)
    apply_quietly(model, random_table(model), select_top_k=1, keep={0: range(16), 1: range(15)})
    assert not caplog.records


@pytest.mark.parametrize(
    ("implementation", "device", "text"),
    [
        (
            "batched_mm",
            "cpu",
            "re-routing will save no time: batched_mm is chosen, which copies one expert's",
        ),
        ("grouped_mm", "cuda", "re-routing will save no time: generate switches grouped_mm to batched_mm"),
        ("grouped_mm", "cpu", None),
        ("eager", "cuda", None),
    ],
)
def test_experts_that_save_no_time_are_warned_of(
    model: PreTrainedModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    device: str,
    text: str | None,
) -> None:
    """``batched_mm`` reads one expert per token and slot, and is what ``generate`` switches to on a GPU."""
    apply_module.warn_once.forget()
    model.set_experts_implementation(implementation)
    slow = apply_module.why_slow
    layers = find_experts(model)
    monkeypatch.setattr(apply_module, "execution_device", lambda _: torch.device(device))
    reason = slow(model, layers)
    monkeypatch.undo()
    assert (reason is None) == (text is None)
    if text is not None:
        assert text in str(reason)
        assert "experts_implementation='eager'" in str(reason)
    if implementation == "batched_mm":
        apply_quietly(model, random_table(model), select_top_k=1)
        apply_quietly(model, policy=Off())
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == f"sere: Qwen3MoeForCausalLM: {reason}"


def test_another_default_device_changes_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    """Every tensor of ours names its device: tables load, models are hooked, and budgets are set as ever."""
    table, path = random_table(model), tmp_path / "table.safetensors"
    table.save(path)
    with torch.no_grad():
        cache = find_cache(model(prompts()))
    inputs = {
        "input_ids": prompts(6, 1),
        "position_ids": torch.full((6, 1), 5),
        **cache_argument(model, cache),
    }
    rows = []
    for device in (None, "meta"):
        torch.set_default_device(device)
        try:
            with integration.apply(model, path, select_top_k=1, min_active=3, threshold=0.1) as handle:
                handle.row_budgets = [1, 1, -1, 4, 1, 1]
                handle.quiet = True
                with torch.no_grad():
                    rows.append(model(**inputs | cache_argument(model, copy.deepcopy(cache))).logits)
                assert handle.stats()[0].rows == 5
            routing = reroute(torch.tensor([[0, 1]], device="cpu"), torch.tensor([[0.7, 0.3]], device="cpu"),
                              table.layers[0], select_top_k=1, row_budgets=[1])  # fmt: skip
            assert routing.ids.tolist() == [[0, 0]]
            assert table.critical_experts(0, 2.0) == tuple(range(16))
        finally:
            torch.set_default_device(None)
    assert torch.equal(*rows)


def test_a_floor_of_all_experts_is_warned_of(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """With min_active = E all experts are primary, so no slot moves; E - 1 is no reason to warn."""
    table = random_table(model)
    E = table.num_experts
    apply_module.warn_once.forget()
    apply_quietly(model, table, select_top_k=1, min_active=E - 1)
    assert not caplog.records
    with integration.apply(model, table, select_top_k=1, min_active=E) as handle:
        handle.quiet = True
        model.generate(torch.arange(1, 9).reshape(4, 2), max_new_tokens=4, do_sample=False)
    assert all(layer.slots_rerouted == 0 for layer in handle.stats())
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        f"min_active={E} disables re-routing: with {E} experts per layer every routed expert is primary."
        in line
    )


def test_a_compiled_model_is_refused(model: PreTrainedModel) -> None:
    """Compiled code would pass over hooks without a word: wrapped, compiled in place, or by ``generate``."""
    table = random_table(model)
    with pytest.raises(InputError, match="it is compiled already"):
        integration.apply(torch.compile(model, backend="eager"), table, select_top_k=1)  # type: ignore[arg-type]
    model._compiled_call = torch.compile(model.__call__, backend="eager")
    with pytest.raises(InputError, match=r"delete model\._compiled_call"):
        integration.apply(model, table, select_top_k=1)
    del model._compiled_call
    model.compile(backend="eager")
    with pytest.raises(InputError, match=r"apply re-routing first, compile then and switch it"):
        integration.apply(model, table, select_top_k=1)


def test_a_router_that_is_not_there_is_named(model: PreTrainedModel) -> None:
    """A policy that needs scores says which layer lacks a router, and leaves no hook on the others."""
    block = model.model.layers[1].mlp
    block.gate = nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.experts: this policy needs the router"):
        integration.apply(model, policy=Oea(1))
    assert hook_count(model) == 0
    integration.apply(model, policy=TopK(1)).remove()


def test_a_router_that_shows_no_scores_is_named() -> None:
    """Ids and K weights are not scores of all experts."""
    with pytest.raises(
        UnsupportedModel, match=r"x: this policy needs .* 8 experts, but the router returns no"
    ):
        scores_in((torch.zeros(3, 2), torch.zeros(3, 8, dtype=torch.long)), 8, "x")


def test_experts_called_by_keyword_are_refused(model: PreTrainedModel) -> None:
    """A model whose block names its arguments would not be re-routed: an error instead of silence."""
    block = model.model.layers[0].mlp
    gate, experts = block.gate, block.experts

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        _, weights, ids = gate(flat)
        return experts(flat, top_k_index=ids, top_k_weights=weights).reshape(hidden.shape)  # type: ignore[no-any-return]

    block.forward = forward
    integration.apply(model, random_table(model), select_top_k=1)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts: expected a call .* got 1"):
        decode(model, prompts())


def test_statistics_are_per_step_and_per_layer(model: PreTrainedModel) -> None:
    """A threshold above every similarity: every secondary expert is critical and nothing moves."""
    with integration.apply(model, random_table(model), select_top_k=1, threshold=1.5) as handle:
        decode(model, prompts())
        stats = handle.stats()
    assert [s.name for s in stats] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for s in stats:
        assert s.slots_rerouted == 0
        assert s.distinct_after == s.distinct_before
        assert 0 < s.critical < s.distinct_before


@pytest.mark.parametrize("phases", ["decode", "all"])
def test_a_policys_settings_say_which_phases(model: PreTrainedModel, phases: str) -> None:
    """SERE given as a policy re-routes the steps that it re-routes when given as settings."""
    table = random_table(model)
    config = RerouteConfig.from_mapping({"select_top_k": 1, "phases": phases})
    results = []
    for options in ({"table": table, "config": config}, {"policy": Sere(table.layers, config)}):
        with integration.apply(model, **options) as handle, torch.no_grad():  # type: ignore[arg-type]
            logits = model(prompts(), use_cache=False).logits
            assert handle.stats()[0].steps == (1 if phases == "all" else 0)
            assert handle.config == config
        results.append(logits)
    assert torch.equal(*results)
