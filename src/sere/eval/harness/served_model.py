"""``sere-vllm``: lm-eval's model class for vLLM, in an engine that re-routes decode steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from lm_eval.api.registry import register_model

from sere.bundled import BUNDLED, model_path
from sere.engines.in_process import in_process_engine
from sere.engines.settings import by_engine, routed, start_settings
from sere.errors import ConfigError
from sere.eval.harness.arguments import check_phases, rows_of, setting_of, table_file
from sere.eval.harness.scored import DECODE, NOTHING, PHASES, PREFILL
from sere.eval.harness.vllm import engine_from, known_as_vllm
from sere.integrations.vllm import read_stats
from sere.policies.spec import PolicySpec

with known_as_vllm():
    from sere.eval.harness.engine_model import EngineLM

logger = logging.getLogger("sere")

NAME = "sere-vllm"
"""What lm-eval calls the model class."""

_FIXED: Mapping[str, str] = {
    "additional_config": 'give "sere" and "table"',
    "max_num_seqs": "use --batch_size",
    "enable_prefix_caching": "every prompt must be computed",
    "data_parallel_size": "use tensor_parallel_size or pipeline_parallel_size",
}
# With phases="decode", too.
_FIXED_BY_SCORING: Mapping[str, str] = {
    "logits_processors": "one of sere forces the given tokens",
    "logprobs_mode": "the log-probabilities of the model are needed",
    "speculative_config": "vLLM cannot force given tokens on a drafter",
    "lora_local_path": "given tokens are scored without adapters",
}

_T = TypeVar("_T")


@register_model(NAME)
class ServedLM(EngineLM):
    """A model in an engine of vLLM of this process, which ends when nothing uses this object any more.

    Attributes:
        seen: By kind of request, what re-routing did while the last requests of this kind ran.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        sere: Mapping[str, Any] | PolicySpec | str | None = None,
        table: str | None = None,
        phases: str = PREFILL,
        batch_size: int | str = 1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Start an engine as ``sere lm-eval --engine vllm`` does.

        Args:
            pretrained: A checkpoint folder, a hub name, or ``"bundled"``.
            sere: As for ``sere-hf``; see `sere.eval.harness.model.SereLM`.
            table: The similarity table's path or its name on the hub; may be in the settings instead. None
                for the model's own. An engine starts with a table, whatever the setting.
            phases: ``"prefill"``, or ``"decode"`` to score log-likelihoods in decode steps; see
                `sere.eval.engine_likelihoods`.
            batch_size: Most requests that decode at once.
            seed: Seed of the engine and of rules that draw.
            **options: Further arguments of lm-eval's ``vllm``.

        Raises:
            ConfigError: A setting or an argument is refused, or there is no table.
            InputError: ``batch_size`` is not a number of rows.
            SereError: The engine refuses the settings or the table.
            EngineFailure: vLLM did not start.
        """
        check_phases(phases)
        decode = phases == DECODE
        for name, why in {**_FIXED, **(_FIXED_BY_SCORING if decode else {})}.items():
            if name in options:
                raise ConfigError(f"{NAME}: leave {name} out: {why}")
        self._setting, inside = setting_of(sere)
        rows = rows_of(batch_size)
        path = str(model_path()) if pretrained == BUNDLED else pretrained
        place = table_file("an engine of vLLM", table or inside, path)
        ((of_start, _),) = by_engine([self._setting])
        own = start_settings(place, of_start)
        with ExitStack() as stack:
            with engine_from(lambda **given: stack.enter_context(_engine(own, given, decode=decode))):
                super().__init__(
                    path, batch_size="auto", max_num_seqs=rows, seed=seed, rows=rows if decode else None,
                    **options,
                )  # fmt: skip
            stack.enter_context(routed(self.model, self._setting, seed=seed))
            read_stats(self.model, reset=True)
            # The engine ends when nothing holds this object, at the latest with the process.
            weakref.finalize(self, stack.pop_all().close)
        self._warned = False

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval's results say of the model: what re-routing did."""
        phases = PHASES[int(self._decode_rows is not None)]
        return {"sere": {"setting": self._setting.label, "phases": phases, "requests": self.seen}}

    def _watched(self, kind: str, run: Callable[[], _T]) -> _T:
        """Run requests of one kind, keep what was seen, and warn once if nothing happened.

        Raises:
            ConfigError: They would be scored in prefill, where no setting changes anything.
        """
        scoring = kind != "generate_until"
        if scoring and self._decode_rows is None and self._setting.policy_class.changes_routing:
            raise ConfigError(
                f"{NAME}: {kind} requests are scored in prefill, where nothing is re-routed, so "
                f'{self._setting.label} would have the result of off; give "phases": "decode" to score them '
                'in decode steps, or "sere": "off" for the unmodified model'
            )
        found = super()._watched(kind, run)
        why = self.seen[kind]["nothing_changed"]
        if why is not None and not self._warned:
            self._warned = True
            logger.warning(NOTHING, self._setting.label, why)
        return found


def _engine(sere: Mapping[str, Any], given: Mapping[str, Any], *, decode: bool) -> Any:
    """Return what starts an engine and ends it.

    Args:
        sere: Settings of re-routing.
        given: Arguments of vLLM's ``LLM``, as lm-eval's class gives them.
        decode: Whether log-likelihoods are to be taken in decode steps.
    """
    options = {"enforce_eager": True, "disable_log_stats": True, **given, "enable_prefix_caching": False}
    if decode:
        from sere.engines.forced_tokens import PROCESSOR

        options["logits_processors"] = [PROCESSOR]
    return in_process_engine(options.pop("model"), sere, **options)
