"""What ``sere bench serve`` runs without ``--server``: engines, each in a process of its own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sere.cli.bench.failures import Failures
from sere.cli.bench.serve_plans import BATCH_SIZES, plan_values
from sere.cli.bench.serve_targets import targets
from sere.cli.output import say
from sere.cli.server_logs import Logs

if TYPE_CHECKING:
    from sere.bench.vllm.engine_groups import EngineGroup, Target
    from sere.bench.vllm.engine_loads import EngineLoad
    from sere.bench.vllm.engine_process import RemoteSession
    from sere.bench.vllm.engines import EnginesBench, EnginesPlan
    from sere.eval.finished import FinishedCases

DECODE = "decode"
# What else than engines needs of the memory.
_REST_BYTES = 2**30


@dataclass(slots=True)
class EngineRun:
    """Engines that are timed.

    Attributes:
        args: The command's arguments.
        logs: Where vLLM's output goes.
        earlier: Records that an interrupted run has written already.
        failures: What failed, while the others went on.
    """

    args: argparse.Namespace
    logs: Logs
    earlier: list[dict[str, Any]] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records as they are measured.

        Raises:
            SereError: Nothing could be measured; it is the first failure.
        """
        from sere.bench.vllm.engine_options import OF_ENGINE, parse_engine_options, start_options_for
        from sere.bench.vllm.engines import EnginesBench, EnginesPlan
        from sere.integrations.vllm.start.versions import check_installed

        args = self.args
        plan = EnginesPlan(
            loads=_loads(args), replay=args.replay, vanilla=args.vanilla, visits=args.visits,
            count_experts=args.count_experts,
            **plan_values(args, parse_engine_options(args.engine_option, OF_ENGINE)),
        )  # fmt: skip
        check_installed()
        with targets(args, plan) as found:
            options = start_options_for(
                plan, plan.loads, dtype=found[0].subject["dtype"], trust_remote_code=args.trust_remote_code
            )
            kept = _kept(args, plan, found)
            bench = EnginesBench(
                lambda engine: self._start(engine, options), found, plan, kept,
                room=_room(), on_failure=self.failures.add,
            )  # fmt: skip
            self.earlier += bench.earlier()
            _say_duration(args, bench)
            with kept.going_on():
                yield from self.failures.checked(bench.records(), len(self.earlier))
            if not self.failures.errors:
                kept.delete()

    def _start(self, engine: EngineGroup, options: dict[str, Any]) -> AbstractContextManager[RemoteSession]:
        from sere.bench.vllm.engine_process import EngineStart, engine_process
        from sere.engines.settings import start_settings

        say(f"starting {engine.name}")
        table = engine.target.table
        how = EngineStart(
            model=engine.target.model, settings=engine.settings, options=options,
            sere=start_settings(table, engine.start) if engine.settings else None,
            threads=self.args.threads, seed=self.args.seed, replay=self.args.replay,
        )  # fmt: skip
        name = f"{engine.kind}.{engine.target.subject['layers']}-layers"
        return engine_process(
            how, self.logs.file("".join(c if c.isalnum() or c in "-." else "-" for c in name))
        )


def _loads(args: argparse.Namespace) -> list[EngineLoad]:
    from sere.bench.vllm.engine_loads import NAMED_LOADS, decoding

    sizes = list(dict.fromkeys(args.batch_size or BATCH_SIZES))
    loads: list[EngineLoad] = []
    for name in dict.fromkeys(args.load or [DECODE]):
        loads += (
            [decoding(B, args.prompt, args.steps) for B in sizes] if name == DECODE else [NAMED_LOADS[name]]
        )
    return loads


def _room() -> int | None:
    """Return the memory that engines may take together; None on a GPU, which one engine takes for itself."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return None
    return int(psutil.virtual_memory().available) - _REST_BYTES


def _kept(args: argparse.Namespace, plan: EnginesPlan, found: Sequence[Target]) -> FinishedCases:
    """Return the finished cells of the same run, from beside ``--out``."""
    from sere.eval.digests import files_digest
    from sere.eval.finished import FinishedCases
    from sere.provenance import provenance
    from sere.table import SimilarityTable

    made = provenance()
    key = {
        "plan": plan.config("vllm", {})
        | {
            "settings": [setting.label for setting in plan.settings],
            "loads": [load.label for load in plan.loads],
            "threads": args.threads, "replay": plan.replay, "vanilla": plan.vanilla, "visits": plan.visits,
            "count_experts": plan.count_experts,
        },
        "model": [dict(target.subject) for target in found],
        "weights": files_digest(found[0].model) if args.preset is None else args.seed,
        "table": {"fingerprint": SimilarityTable.load(found[0].table).fingerprint},
        "versions": made["versions"],
        "machine": made["machine"],
        "commit": made["commit"],
    }  # fmt: skip
    return FinishedCases(None if args.out is None else args.out.with_name(f".{args.out.name}.partial"), key)


def _say_duration(args: argparse.Namespace, bench: EnginesBench) -> None:
    import torch

    from sere.bench.vllm.duration import estimate_seconds, measure_rates

    alive = "all alive at once" if bench.visits == 1 else f"in turns, {bench.visits} times each"
    starts = f"{len(bench.engines)} engines ({alive}), {len(bench.plan.loads)} loads"
    if torch.cuda.is_available():
        say(starts)
        return
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    minutes = max(1, round(estimate_seconds(bench, measure_rates()) / 60))
    say(f"{starts}: about {minutes} min on an idle machine")
