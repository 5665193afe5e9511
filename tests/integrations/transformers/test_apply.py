"""What ``apply`` takes and what it refuses; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
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
from sere.policies import Sere, TopK
from sere.table import SimilarityTable
from tests.support.decoding import decode, hook_count, prompts, random_table
from tests.support.tiny import tiny_model


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


@pytest.mark.parametrize("how", ["path", "text", "config"])
def test_the_table_may_be_a_path_or_stand_in_the_settings(
    model: PreTrainedModel, tmp_path: Path, how: str
) -> None:
    """A path, its text and ``config.table`` lead to the same routing as the table itself."""
    table, path = random_table(model), tmp_path / "table.sere"
    table.save(path)
    options: dict[str, dict[str, Any]] = {
        "path": {"table": path, "select_top_k": 1},
        "text": {"table": str(path), "config": RerouteConfig(select_top_k=1)},
        "config": {"config": RerouteConfig(select_top_k=1, table=str(path))},
    }
    with integration.apply(model, table, select_top_k=1):
        expected, _ = decode(model, prompts())
    with integration.apply(model, **options[how]) as handle:
        assert torch.equal(decode(model, prompts())[0], expected)
        assert handle.config is not None
        assert handle.config.select_top_k == 1


def settings_of(table: SimilarityTable, /, **changes: Any) -> dict[str, Any]:
    """A table and S = 1, or what a case has instead."""
    return {"table": table, "select_top_k": 1} | changes


SENTINEL = {"select_top_k": 1, "merge": "sentinel", "sentinel": -1}
WRONG: dict[str, tuple[Callable[[SimilarityTable], dict[str, Any]], type[SereError], str]] = {
    "no table": (
        lambda _: {"select_top_k": 1},
        InputError,
        "re-routing needs a similarity table, none was given, .* in memory\\), nor NAME.sere",
    ),
    "no path": (
        lambda table: settings_of(table, table=5),
        InputError,
        "expected a similarity table or its path, got int; make",
    ),
    "a mapping as config": (
        lambda table: {"table": table, "config": SENTINEL},
        ConfigError,
        "config: expected a RerouteConfig, got dict; make",
    ),
    "a name as policy": (
        lambda _: {"policy": "topk"},
        InputError,
        "policy: expected a routing rule of sere.policies, got str",
    ),
    "paper without S": (
        lambda table: {"table": table, "preset": "paper"},
        ConfigError,
        "select_top_k is missing",
    ),
    "a tier that is not there": (
        lambda table: {"table": table, "tier": "fast"},
        ConfigError,
        "the table has no tier 'fast'; it has none",
    ),
    "a typo": (
        lambda table: {"table": table, "select_topk": 1},
        ConfigError,
        "did you mean 'select_top_k'",
    ),
    "no such file": (lambda table: settings_of(table, table="no/such/file"), TableError, "no/such/file"),
    "config and settings": (
        lambda table: {"table": table, "config": RerouteConfig(select_top_k=1), "threshold": 0.5},
        ConfigError,
        r"either config or settings by name, not both \(got threshold\)",
    ),
    "policy and table": (
        lambda table: {"table": table, "policy": TopK(1)},
        InputError,
        "either a policy, or a table",
    ),
    "policy and settings": (
        lambda _: {"policy": TopK(1), "select_top_k": 1},
        InputError,
        "either a policy, or a table",
    ),
    "keep of no layer": (
        lambda table: settings_of(table, keep={7: [1]}),
        ConfigError,
        "layer 7 has no similarities; the table has the layers 0, 1",
    ),
    "keep of no expert": (
        lambda table: settings_of(table, keep={1: [3, 16]}),
        ConfigError,
        "keep: layer 1 has the experts 0 to 15, got 16",
    ),
    "sentinel": (
        lambda table: {"table": table} | SENTINEL,
        ConfigError,
        r"merge: 'sentinel' \(sentinel -1\) .* Use merge='distinct' or merge='same'",
    ),
    "sentinel in a policy": (
        lambda table: {"policy": Sere(table.layers, RerouteConfig.from_mapping(SENTINEL))},
        ConfigError,
        "merge: 'sentinel' .* fail or give wrong output",
    ),
    "scale": (
        lambda table: settings_of(table, use_scale=True),
        ConfigError,
        "use_scale: the table has no factors; calibrate",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(model: PreTrainedModel, case: str) -> None:
    """Missing tables, unknown settings and contradictions each have their error; no hook stays."""
    options, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        integration.apply(model, **options(random_table(model)))
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
