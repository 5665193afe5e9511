"""Evaluate on vLLM: the same questions and marks, decoded by the engine at fixed concurrency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

from sere.errors import ConfigError
from sere.eval.questions import encode, mark
from sere.eval.run import Plan, Progress, compared, head_of, summarise_layers
from sere.eval.settings import Setting
from sere.integrations.vllm import configure, read_stats

LIVE = frozenset({"select_top_k", "threshold"})


def check_settings(settings: Sequence[Setting]) -> None:
    """Refuse settings that an engine cannot change between while it runs.

    Raises:
        ConfigError: One is neither ``off`` nor ``sere`` with S and ρ.
    """
    for setting in settings:
        if setting.kind not in ("off", "sere") or not set(setting.options) <= LIVE:
            raise ConfigError(
                f"setting {setting.label}: on vLLM expected off or sere with S and rho, e.g. "
                "sere:S=2,rho=0.3; other settings need an engine of their own, and rivals run on Transformers"
            )


def evaluate_engine(
    llm: Any,
    tokenizer: Any,
    plan: Plan,
    *,
    table: Any,
    progress: Progress = lambda _name, _total: nullcontext(lambda: None),
) -> dict[str, Any]:
    """Decode all questions under every setting at every concurrency and score them.

    The engine holds B requests at once for as long as there are questions: a request that ends gives its
    place to the next, whose prompt is read beside the others' decoding (exactly, whatever the setting).
    At the end of the questions fewer run at once.

    Args:
        llm: vLLM's ``LLM``, with re-routing.
        tokenizer: The model's tokenizer.
        plan: What to evaluate; passages are not read, for the engine gives no logits of decoded text.
        table: The similarities that the engine uses.
        progress: Shows how far each case is.

    Returns:
        A record as ``sere.eval.run.evaluate`` gives it; ``rows`` is the concurrency, and ``mean_rows`` the
        rows that decode steps really had.

    Raises:
        ConfigError: The engine cannot change to a setting while it runs.
    """
    check_settings(plan.settings)
    prompts = encode(tokenizer, [question.prompt for question in plan.questions])
    cases = []
    for batch_size in plan.batch_sizes:
        for setting in plan.settings:
            with progress(f"B={batch_size} {setting.label}", len(prompts)) as tick:
                cases.append(_case(llm, tokenizer, plan, prompts, setting, batch_size, tick))
    head = head_of(plan, table.identity, table, dtype=_dtype(llm), implementation="vllm")
    return head | {"cases": compared(cases, plan)}


def _case(
    llm: Any,
    tokenizer: Any,
    plan: Plan,
    prompts: Sequence[Sequence[int]],
    setting: Setting,
    B: int,
    tick: Callable[[], object],
) -> dict[str, Any]:
    options = {"threshold": 0.0} | dict(setting.options)
    if setting.kind == "off":
        # An S beyond any K changes nothing, and counts.
        options["select_top_k"] = 1 << 19
    configure(llm, enabled=True, **options)
    read_stats(llm, reset=True)
    tokens = decode_at(llm, prompts, concurrency=B, max_new_tokens=plan.max_new_tokens, on_finished=tick)
    layers = read_stats(llm, reset=True).layers
    right = mark(tokenizer, plan.questions, tokens)
    return {
        "setting": setting.label,
        "batch_size": B,
        "rows": B,
        "mean_rows": fmean(layer.rows for layer in layers),
        "loop": "vllm",
        "steps": layers[0].steps,
        "step_ms_median": None,
        "answer_tokens": round(fmean(len(answer) for answer in tokens), 3),
        "experts": summarise_layers(layers),
        "text": None,
        "right": "".join("01"[answer] for answer in right),
    }


def decode_at(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    concurrency: int,
    max_new_tokens: int,
    on_finished: Callable[[], object] = lambda: None,
) -> list[list[int]]:
    """Decode prompts greedily, ``concurrency`` of them at once, and return each one's new tokens.

    Args:
        llm: vLLM's ``LLM``.
        prompts: Token ids.
        concurrency: Requests in the engine at once.
        max_new_tokens: Most tokens of an answer; the engine's own end tokens end it earlier.
        on_finished: Called after each answer.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=max_new_tokens, detokenize=False)
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = iter(range(len(prompts)))
    running = 0
    while True:
        while running < concurrency and (place := next(waiting, None)) is not None:
            engine.add_request(str(place), {"prompt_token_ids": list(prompts[place])}, params)
            running += 1
        if not running:
            return answers
        for output in engine.step():
            if output.finished:
                answers[int(output.request_id)] = _answer(output.outputs[0])
                running -= 1
                on_finished()


def _answer(completion: Any) -> list[int]:
    """Return a completion's tokens without the end token."""
    tokens = list(completion.token_ids)
    return tokens[:-1] if completion.finish_reason == "stop" else tokens


def _dtype(llm: Any) -> str:
    return str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
