"""Log-likelihoods of given continuations, taken in decode steps of a vLLM engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

from sere.errors import UnsupportedEngine
from sere.eval.likelihoods import Continuation, Likelihood, shuffled

# Requests have names that no other call in this process has given.
_NAMES = count()


def engine_log_likelihoods(
    llm: Any,
    asked: Sequence[Continuation],
    *,
    concurrency: int,
    on_finished: Callable[[], object] = lambda: None,
) -> list[Likelihood]:
    """Let an engine decode given continuations, and add up the log-probabilities of their tokens.

    The same tokens are scored as in `sere.eval.likelihoods.log_likelihoods`. A request's prompt is the
    context without its last token. That token and those of the continuation are forced on it, one a step. So
    every scored token is predicted by a decode step, but for the first one after a context of one token.

    The engine holds ``concurrency`` requests at once, in the same shuffled order. After one ends, the next
    one starts, and its prompt is read in a step in which the others decode. When the continuations run out,
    the first ones are decoded again, unscored, until the last scored one has ended. After an error, too, the
    engine holds none of the requests.

    Args:
        llm: vLLM's ``LLM``, started with ``logits_processors=[PROCESSOR]`` of `sere.engines.forced_tokens`
            and the ``logprobs_mode`` ``"raw_logprobs"``, which is vLLM's default.
        asked: What to score; each text at most as long as the engine's longest.
        concurrency: Most requests in the engine at once.
        on_finished: Called after each continuation, for progress.

    Returns:
        One entry per continuation, in the order given. A token counts as the most likely one if no other is
        more likely; in bfloat16 two may be equally likely.

    Raises:
        InputError: A context or a continuation is empty, or the logits are not finite numbers.
        UnsupportedEngine: The engine decoded other tokens.
    """
    order = shuffled(asked)
    scores = [Likelihood() for _ in asked]
    engine, numbers = llm.llm_engine, count()
    running: dict[str, int] = {}
    left = len(order)
    try:
        while left:
            while len(running) < min(concurrency, len(order)):
                number = next(numbers)
                one = asked[order[number % len(order)]]
                prompt = {"prompt_token_ids": one.text[: one.read]}
                name = f"sere-likelihood-{next(_NAMES)}"
                running[name] = number
                engine.add_request(name, prompt, _forced(one.text[one.read :]))
            for output in engine.step():
                if not output.finished:
                    continue
                if (number := running.pop(output.request_id)) < len(order):
                    index = order[number]
                    _add(scores[index], asked[index], output.outputs[0])
                    left -= 1
                    on_finished()
    except BaseException:
        with suppress(Exception):  # an engine that has failed may refuse this, too
            engine.abort_request(sorted(running))
        raise
    engine.abort_request(sorted(running))
    return scores


def _forced(tokens: Sequence[int]) -> Any:
    """Return the parameters of a request that decodes these tokens, whichever end texts."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from sere.engines.forced_tokens import GIVEN

    return SamplingParams(
        temperature=0, max_tokens=len(tokens), ignore_eos=True, logprobs=1, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY, extra_args={GIVEN: list(tokens)},
    )  # fmt: skip


def _add(score: Likelihood, one: Continuation, completion: Any) -> None:
    """Score what an engine decoded.

    Raises:
        InputError: The logits are not finite numbers.
        UnsupportedEngine: It is not what was given.
    """
    given = one.text[one.read :]
    if list(completion.token_ids) != given:
        from sere.engines.forced_tokens import PROCESSOR

        raise UnsupportedEngine(
            f"log-likelihood in decode steps: expected the engine to decode the {len(given)} tokens "
            f"given, got {len(completion.token_ids)} tokens, not all of them these; start it with "
            f"logits_processors=[{PROCESSOR!r}] and without speculative decoding"
        )
    for position, (token, found) in enumerate(zip(given, completion.logprobs, strict=True), one.read):
        if position >= len(one.context):
            nats = found[token].logprob
            score.add(nats, greedy=nats >= max(other.logprob for other in found.values()))
