"""The handle notices that nothing was re-routed and says why, once."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

import sere.integrations.transformers as integration
from sere.integrations.transformers.guard import ENOUGH_CALLS, ENOUGH_STEPS
from sere.policies import Off, TopK, TopP
from tests.support.decoding import decode, prompts, random_table


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sere"]


def test_what_works_is_no_news(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """Re-routing that moves slots logs nothing, and the numbers say what it did."""
    with integration.apply(model, random_table(model), select_top_k=1) as handle:
        decode(model, prompts())
        assert handle.why_nothing_changed() is None
        handle.stats()
    assert not lines(caplog)
    seen = handle.activity()
    assert (seen.calls, seen.eligible, seen.layer_steps, seen.hook_ran) == (6, 5, 5, True)
    assert seen.rerouted > 0
    assert seen.experts_after < seen.experts_before


@pytest.mark.parametrize(
    ("options", "settings", "text"),
    [
        ({"use_cache": False}, {}, r"no decode step was seen in 6 calls of the model; .*phases='all'"),
        (
            {},
            {"active_experts": 15},
            r"active_experts=15 is not below what these batches read \(\d+\.\d experts",
        ),
    ],
    ids=["no cache", "floor"],
)
def test_each_reason_is_said_once_per_handle(
    model: PreTrainedModel,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    settings: dict[str, Any],
    text: str,
) -> None:
    """Reading the statistics says it; removing the handle does not say it again."""
    with integration.apply(model, random_table(model), select_top_k=1, **settings) as handle:
        decode(model, prompts(), **options)
        handle.stats()
        handle.stats()
    (line,) = lines(caplog)
    assert line == f"sere: Qwen3MoeForCausalLM: {handle.why_nothing_changed()}"
    assert re.search(f"nothing was re-routed: {text}", line)


def test_a_model_that_was_not_called_is_named(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that decodes with another object, or not at all, is told of it; one that failed is not."""
    table = random_table(model)
    with pytest.raises(ZeroDivisionError), integration.apply(model, table, select_top_k=1):
        raise ZeroDivisionError
    assert not lines(caplog)
    with integration.apply(model, table, select_top_k=1) as handle:
        decode(model, prompts())
        handle.reset_stats()
    assert not lines(caplog), "numbers that were thrown away after use are no sign that there were none"
    integration.apply(model, table, select_top_k=1).remove()
    (line,) = lines(caplog)
    assert "the model was not called while re-routing was on" in line


def test_packed_batches_are_named(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """``generate_batch`` packs its rows into one, which is left as it is: the first sentence."""
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=2, pad_token_id=0)
    # By default the cache takes most of the memory there is.
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    with integration.apply(model, random_table(model), select_top_k=1):
        model.generate_batch([[5, 6, 7], [8, 9]], generation_config=config, continuous_batching_config=small)
    assert any("no decode step was seen in" in line for line in lines(caplog))


def test_it_is_said_in_use(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """A handle that nobody removes speaks after enough steps, or after enough calls without one."""
    with integration.apply(model, random_table(model), select_top_k=1, active_experts=15):
        decode(model, prompts(), max_new_tokens=ENOUGH_STEPS + 1)
        assert not lines(caplog)
        decode(model, prompts(), max_new_tokens=2)
        (line,) = lines(caplog)
    assert "active_experts=15 is not below" in line
    caplog.clear()
    with integration.apply(model, random_table(model), select_top_k=1), torch.no_grad():
        for _ in range(ENOUGH_CALLS):
            model(prompts(1, 2))
        assert not lines(caplog)
        model(prompts(1, 2))
        (line,) = lines(caplog)
    assert f"no decode step was seen in {ENOUGH_CALLS} calls" in line


def test_off_and_quiet_handles_say_nothing(model: PreTrainedModel, caplog: pytest.LogCaptureFixture) -> None:
    """``off`` changes nothing on purpose; a quiet handle is asked by its caller."""
    with integration.apply(model, policy=Off()) as handle:
        decode(model, prompts())
        assert handle.why_nothing_changed() is None
    with integration.apply(model, policy=TopP(1 - 1e-9)) as handle:
        handle.quiet = True
        decode(model, prompts())
        assert "the policy changed no slot" in str(handle.why_nothing_changed())
    with integration.apply(model, policy=TopK(2)):
        decode(model, prompts())
    assert not lines(caplog)


def test_compiled_calls_are_counted_by_the_layers(
    model: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that was compiled with the hooks inside is not taken for a model that nobody called."""
    torch._dynamo.reset()
    handle = integration.apply(model, random_table(model), select_top_k=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(input_ids=prompts(), use_cache=False)
    assert "no decode step was seen in the compiled calls" in str(handle.why_nothing_changed())
    handle.quiet = True
    handle.remove()
    torch._dynamo.reset()


def test_a_model_that_computes_nan_is_named(model: PreTrainedModel) -> None:
    """Gate weights that are no numbers count for nothing, so that no step reaches a layer."""
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    handle = integration.apply(model, random_table(model), select_top_k=1)
    decode(model, prompts())
    assert "or all gate weights were NaN" in str(handle.why_nothing_changed())
    handle.quiet = True
    handle.remove()


def test_rows_that_all_count_as_padding_are_named(model: PreTrainedModel) -> None:
    """Steps in which no row votes are not taken for compiled ones."""
    handle = integration.apply(model, random_table(model), select_top_k=1)
    handle.row_budgets = [-1] * 6
    decode(model, prompts())
    assert "in 5 steps every row counted as padding" in str(handle.why_nothing_changed())
    handle.row_budgets = [4] * 6
    handle.reset_stats()
    decode(model, prompts())
    assert "smaller row budgets" in str(handle.why_nothing_changed())
    handle.quiet = True
    handle.remove()
