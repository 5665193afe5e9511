"""What every evaluation in Transformers works with, and what each kind of evaluation must provide."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sere.engines.transformers import apply_setting
from sere.policies.spec import PolicySpec
from sere.progress import Progress

if TYPE_CHECKING:
    from sere.integrations.transformers import Handle
    from sere.table import SimilarityTable


@dataclass(frozen=True, slots=True)
class Workbench:
    """A model with all that its decoding takes.

    Attributes:
        model: A causal language model of Transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Token ids of what the plan asks.
        table: Similarities, for settings that need them.
        progress: Shows how far each case is.
    """

    model: Any
    tokenizer: Any
    prompts: Sequence[Sequence[int]]
    table: SimilarityTable | None
    progress: Progress

    @contextmanager
    def applied(
        self, setting: PolicySpec, name: str, parts: int, *, seed: int = 0, pad_token_id: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Handle, Callable[[], object]]]:  # fmt: skip
        """Apply a setting and show progress.

        Args:
            setting: What to apply.
            name: What progress calls the work.
            parts: How many parts the work has.
            seed: Seed of the random control.
            pad_token_id: What rows that have ended are fed; -1 if every row is real.
            batch_size: Rows of a step, if a forward pass may hold several; see `sere.engines.side_by_side`.

        Yields:
            The handle, and what to call after each part.
        """
        with (
            self.progress(name, parts) as tick,
            apply_setting(
                self.model, setting, self.table, seed=seed, pad_token_id=pad_token_id, batch_size=batch_size
            ) as handle,
        ):
            handle.quiet = True  # the record says why nothing changed, so the log need not
            yield handle, tick


class Measure(Protocol):
    """One kind of evaluation: how a case is measured, and what a record says of all cases."""

    @abstractmethod
    def case(self, setting: PolicySpec, batch_size: int) -> dict[str, Any]:
        """Measure one case; JSON-ready, not yet compared with the baseline."""

    @abstractmethod
    def result(self, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return what a record says after its header: ``cases``, compared with the baseline, and others."""
