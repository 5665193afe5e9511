"""lm-eval's model class for vLLM, which can score in decode steps and says what re-routing did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from lm_eval.models.vllm_causallms import VLLM

from sere.eval.engine_likelihoods import engine_log_likelihoods
from sere.eval.harness.decode_steps import Request, answer
from sere.integrations.vllm import read_stats
from sere.summaries import summarize_layers

_T = TypeVar("_T")


class EngineLM(VLLM):  # type: ignore[misc]
    """A model in an engine of vLLM that counts what it re-routes.

    Attributes:
        seen: By kind of request, what re-routing did while the last requests of this kind ran: ``experts``
            and ``nothing_changed``.
    """

    def __init__(self, *given: Any, rows: int | None = None, **options: Any) -> None:
        """Start as lm-eval's class does.

        Args:
            *given: As for lm-eval's class.
            rows: Most rows of a decode step in which log-likelihoods are taken; None to take them in prefill.
            **options: As for lm-eval's class.
        """
        super().__init__(*given, **options)
        self._decode_rows = rows
        self.seen: dict[str, dict[str, Any]] = {}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations, in prefill or in decode steps."""
        run = partial(super().loglikelihood, requests, disable_tqdm=disable_tqdm)
        return self._watched("loglikelihood", run)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score complete texts, in prefill or in decode steps."""
        run = partial(super().loglikelihood_rolling, requests, disable_tqdm=disable_tqdm)
        return self._watched("loglikelihood_rolling", run)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate as lm-eval's class does."""
        return self._watched(
            "generate_until", partial(super().generate_until, requests, disable_tqdm=disable_tqdm)
        )

    def _watched(self, kind: str, run: Callable[[], _T]) -> _T:
        """Run requests of one kind and keep what re-routing did since the counters were last read."""
        found = run()
        stats = read_stats(self.model, reset=True)
        experts = summarize_layers(stats.layers)
        self.seen[kind] = {"experts": experts, "nothing_changed": stats.nothing_changed}
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score tokens after tokens; in prefill that is lm-eval's own method."""
        if self._decode_rows is None:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm
            )
            return found
        return answer(
            requests, partial(engine_log_likelihoods, self.model, concurrency=self._decode_rows),
            # As in prefill, where lm-eval leaves room for the one token that vLLM must generate.
            longest=self.max_length - 1, cache_hook=self.cache_hook, disable_tqdm=disable_tqdm,
        )  # fmt: skip
