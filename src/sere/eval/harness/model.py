"""``sere-hf``: lm-eval's model class for Transformers, with re-routing in its decode steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from sere.bundled import BUNDLED, model_path
from sere.checkpoints import choose_experts_implementation
from sere.engines.side_by_side import rows_at_once
from sere.engines.transformers import apply_setting, check_settings
from sere.eval.harness.arguments import check_phases, rows_of, setting_of, table_file
from sere.eval.harness.decode_steps import Request, answer
from sere.eval.harness.scored import NOTHING, PHASES, PREFILL, nothing_in_prefill
from sere.eval.likelihoods import log_likelihoods
from sere.policies.spec import PolicySpec
from sere.summaries import summarize_handle
from sere.table import SimilarityTable

logger = logging.getLogger("sere")

NAME = "sere-hf"
"""What lm-eval calls the model class, once this module is imported."""


@register_model(NAME)
class SereLM(HFLM):  # type: ignore[misc]
    """A model of Transformers that is re-routed as in serving, for lm-eval.

    Attributes:
        seen: By kind of request, what re-routing did while the last requests of this kind ran: ``experts``
            and ``nothing_changed``, as `sere.summaries.summarize_handle` returns them.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        sere: Mapping[str, Any] | PolicySpec | str | None = None,
        table: SimilarityTable | str | None = None,
        phases: str = PREFILL,
        device: str | None = None,
        quiet: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: A checkpoint folder, a hub name, ``"bundled"``, or a model in memory.
            sere: Settings by name, as in vLLM's ``additional_config`` (``{"active_experts": 24}``); or a
                routing rule as on the command line (``"topk:select_top_k=4"``, ``"off"``). None for all
                defaults.
            table: The similarity table, its path or its name on the hub; may be in the settings instead.
                None for the one in the model's folder, else ``NAME.sere`` in the current one.
            phases: ``"prefill"``: log-likelihoods come from prefill, which is exact. ``"decode"``: from
                decode steps of ``batch_size`` rows; see `sere.eval.likelihoods`.
            device: As in lm-eval; None for a GPU if there is one.
            quiet: Whether no warning says that nothing was re-routed, because the caller reads ``seen``.
            seed: Seed of rules that draw.
            **options: Further arguments of lm-eval's ``hf``.

        Raises:
            ConfigError: A setting is refused, or needs a table and there is none.
            TableError: The table cannot be read, or belongs to another model.
        """
        check_phases(phases)
        self._setting, source = setting_of(sere)
        self._decode = phases != PREFILL
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if isinstance(pretrained, str):
            pretrained = str(model_path()) if pretrained == BUNDLED else pretrained
            chosen = choose_experts_implementation(options.get("experts_implementation"), device)
            options |= {} if chosen is None else {"experts_implementation": chosen}
        super().__init__(pretrained, device=device, **options)
        self._table = self._find(table if table is not None else source)
        check_settings([self._setting], self._table)
        self._warned, self._seed = quiet, seed
        self.seen: dict[str, dict[str, Any]] = {}

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations, in prefill or in decode steps."""
        with self._watched("loglikelihood", len(requests)):
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score complete texts, in prefill or in decode steps."""
        with self._watched("loglikelihood_rolling", len(requests)):
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate as lm-eval's ``hf`` does; every step but the first of a batch is re-routed."""
        with self._watched("generate_until", len(requests)):
            found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
            return found

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval's results say of the model, with what re-routing did."""
        info: dict[str, Any] = super().get_model_info()
        phases = PHASES[int(self._decode)]
        return info | {"sere": {"setting": self._setting.label, "phases": phases, "requests": self.seen}}

    def _find(self, source: SimilarityTable | str | None) -> SimilarityTable | None:
        """Return the table that was given, else the model's own, if the setting needs one."""
        if not self._setting.needs_table or isinstance(source, SimilarityTable):
            return source if isinstance(source, SimilarityTable) else None
        what, model = f"setting {self._setting.label}", getattr(self.model, "name_or_path", None)
        return SimilarityTable.load(table_file(what, source, model))

    @contextmanager
    def _watched(self, kind: str, count: int) -> Iterator[None]:
        """Re-route while requests of one kind run, keep what was seen, and warn once if nothing happened."""
        scoring = kind != "generate_until"
        # In decode steps of ours every row is real; generate feeds rows that have ended the pad token.
        pad = -1 if scoring else self.tokenizer.pad_token_id
        steps = rows_of(self.batch_size) if scoring and self._decode else None
        with apply_setting(
            self.model, self._setting, self._table, seed=self._seed, pad_token_id=pad, batch_size=steps
        ) as handle:  # fmt: skip
            handle.quiet = True
            self._rows_at_once = 1 if steps is None else rows_at_once(self.model, steps, count)
            yield
            self.seen[kind] = happened = summarize_handle(handle)
        if scoring and not self._decode and self._setting.policy_class.changes_routing:
            happened["nothing_changed"] = nothing_in_prefill(kind)
        if happened["nothing_changed"] is not None and not self._warned:
            self._warned = True
            logger.warning(NOTHING, self._setting.label, happened["nothing_changed"])

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score tokens after tokens; in prefill that is lm-eval's own method."""
        if not self._decode:
            found: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return found
        rows = max(self._rows_at_once, 1)
        return answer(
            requests, partial(log_likelihoods, self.model, batch_size=rows),
            longest=self.max_length + 1, cache_hook=self.cache_hook, disable_tqdm=disable_tqdm,
        )  # fmt: skip


def models_of(
    model: Any,
    tokenizer: Any,
    settings: Sequence[PolicySpec],
    batch_size: int,
    *,
    table: SimilarityTable | None,
    phases: str,
    seed: int = 0,
) -> Generator[tuple[PolicySpec, SereLM, Callable[[], dict[str, Any]]]]:
    """Yield each setting with lm-eval's model that runs it, and what reads what re-routing did.

    Args:
        model: A causal language model of Transformers.
        tokenizer: Its tokenizer.
        settings: What to run.
        batch_size: Rows of a step.
        table: Similarities, for settings that need them.
        phases: As for `SereLM`.
        seed: Seed of rules that draw.
    """
    for setting in settings:
        one = SereLM(
            model, tokenizer=tokenizer, sere=setting, table=table, phases=phases, batch_size=batch_size,
            device=str(model.device), quiet=True, seed=seed,
        )  # fmt: skip
        yield setting, one, lambda one=one: one.seen  # type: ignore[misc]
