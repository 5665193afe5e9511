"""What to evaluate: settings at batch sizes, on questions with answers or on prompts without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sere.errors import InputError, name_some
from sere.eval.digests import texts_digest
from sere.eval.questions import Asked, prompt_key, takes_template
from sere.policies.spec import PolicySpec, check_off_first
from sere.texts import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan(ABC):
    """What every evaluation has: its cases are all settings at all batch sizes.

    Attributes:
        settings: The ways to route; the first is ``off``, the baseline.
        batch_sizes: Rows of a decode step.
        max_new_tokens: Most new tokens per text.
        seed: Seed of the random control.
        chat_template: Whether a prompt that is plain text is given to the model as a user's message, if its
            tokenizer has a chat template.
        source: How a record names the file that the texts are from; None for tasks.
    """

    settings: Sequence[PolicySpec]
    batch_sizes: Sequence[int]
    max_new_tokens: int
    seed: int = 0
    chat_template: bool = False
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_off_first(self.settings)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(
                f"evaluate: expected batch sizes of at least 1, got [{name_some(self.batch_sizes)}]"
            )

    @abstractmethod
    def asked(self) -> Sequence[str | Row]:
        """Return what the model reads, one entry per text."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a record says of the plan beside settings and batch sizes; JSON-ready."""

    def for_tokenizer(self, tokenizer: Any) -> Self:
        """Return the plan with a chat template only if the tokenizer has one and a text takes it."""
        return replace(self, chat_template=self.chat_template and takes_template(tokenizer, self.asked()))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPlan(EvalPlan):
    """Right answers to questions; perplexity and divergence on English passages.

    Attributes:
        questions: The questions, in the order in which they are decoded. Those of tasks were drawn with
            ``seed``.
        passages: English passages; empty for none.
    """

    questions: Sequence[Asked]
    passages: Sequence[str] = ()
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.questions:
            raise InputError("evaluate: expected at least one question, got none")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        EvalPlan.__post_init__(self)

    def asked(self) -> Sequence[str | Row]:
        """Return the questions' prompts."""
        return [question.prompt for question in self.questions]

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the plan beside settings and batch sizes; JSON-ready."""
        asked: dict[str, Any] = {
            "tasks": dict(Counter(question.task for question in self.questions)),
            "questions_digest": texts_digest([question.key for question in self.questions]),
        }
        if self.source is not None:
            asked |= {"source": dict(self.source), "chat_template": self.chat_template}
        return asked | {
            "passages": len(self.passages),
            "passages_digest": texts_digest(self.passages),
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "intervals": {"share": "Wilson", "difference": "Newcombe 1998, paired (method 10)"},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPlan(EvalPlan):
    """The model's own continuations of prompts, scored under each setting.

    Attributes:
        prompts: What the model continues.
        max_new_tokens: Most tokens of a continuation, at least 2: the first comes from prefill.
    """

    prompts: Sequence[str | Row]
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("evaluate: expected at least one prompt, got none")
        if self.max_new_tokens < 2:
            raise InputError(
                f"max_new_tokens: expected at least 2, got {self.max_new_tokens}; the first token comes from "
                "prefill, which is not re-routed"
            )
        EvalPlan.__post_init__(self)

    def asked(self) -> Sequence[str | Row]:
        """Return the prompts."""
        return self.prompts

    def describe(self) -> dict[str, Any]:
        """Return what a record says of the plan beside settings and batch sizes; JSON-ready."""
        keys = [prompt_key(prompt) for prompt in self.prompts]
        return {
            "prompts": dict(self.source or {"count": len(keys)}),
            "prompts_digest": texts_digest(keys),
            "chat_template": self.chat_template,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "intervals": {
                "unit": "prompt",
                "agreement": "Wilson at the effective number of tokens (Korn and Graubard 1998)",
                "kl": "Student's t on a log scale, linearized variance between prompts",
                "perplexity": "Student's t on the mean loss, linearized variance between prompts",
            },
        }
