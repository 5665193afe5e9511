"""What ``sere bench serve --server`` runs: servers under load."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from sere.cli.bench.failures import Failures
from sere.cli.bench.serve_plans import BATCH_SIZES, plan_values
from sere.cli.bench.serve_targets import targets
from sere.cli.output import say
from sere.cli.server_logs import Logs
from sere.summaries import pairs


def online_records(args: argparse.Namespace, logs: Logs, failures: Failures) -> Iterator[dict[str, Any]]:
    """Yield the records of servers under load as they are measured; note those that fail.

    Raises:
        ServerError: No server could be timed.
    """
    from sere.bench.vllm.engine_options import OF_SERVER, as_arguments, parse_engine_options, start_options
    from sere.bench.vllm.load_generator import Load
    from sere.bench.vllm.over_http import SERVED, OverHttpPlan, bench_over_http
    from sere.engines.server import Server, serve
    from sere.engines.settings import start_settings
    from sere.integrations.vllm.start.versions import check_installed, check_routes

    sizes = args.batch_size or ([] if args.request_rate else BATCH_SIZES)
    plan = OverHttpPlan(
        loads=[
            *(Load(concurrency=B) for B in dict.fromkeys(sizes)),
            *(Load(request_rate=rate) for rate in dict.fromkeys(args.request_rate or ())),
        ],
        requests=32 if args.requests is None else args.requests,
        **plan_values(args, parse_engine_options(args.engine_option, OF_SERVER)),
    )
    check_routes(check_installed())
    most = max(plan.count(load) if load.concurrency is None else load.concurrency for load in plan.loads)
    with targets(args, plan) as (target,):
        options = start_options(
            plan, requests=most, longest=plan.prompt + plan.steps, prompt_tokens=most * plan.prompt,
            dtype=target.subject["dtype"], trust_remote_code=args.trust_remote_code,
        )  # fmt: skip
        options |= {"served_model_name": SERVED, "disable_uvicorn_access_log": True}
        arguments = as_arguments(options)

        def start(settings: Mapping[str, Any]) -> AbstractContextManager[Server]:
            say(", ".join(["starting vllm serve", *pairs(settings)]))
            return serve(
                target.model, start_settings(target.table, settings), logs.file("server"), *arguments
            )

        with ExitStack() as stack:
            vanilla = None
            if args.vanilla:
                say("starting vllm serve without sere")
                vanilla = stack.enter_context(serve(target.model, None, logs.file("vanilla"), *arguments))
            yield from failures.checked(
                bench_over_http(start, vanilla, target.subject, plan, on_failure=failures.add)
            )
