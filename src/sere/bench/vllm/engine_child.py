"""What runs in the process of a timed engine: it starts the engine, then answers one question per line.

The first argument is the number of the file descriptor that answers are written to: vLLM writes to the
process's own output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.session import EngineSession, Session
from sere.engines.in_process import in_process_engine
from sere.errors import EngineError, SereError
from sere.policies.spec import parse_spec


def main() -> None:
    """Start the engine that the first line of the input describes, and answer until the input ends."""
    answers = os.fdopen(int(sys.argv[1]), "w")

    def answer(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    questions = (json.loads(line) for line in sys.stdin)
    try:
        _serve(next(questions), questions, answer)
    except SereError as error:
        answer({"refused": str(error)})
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        raise


def _serve(
    started: Mapping[str, Any],
    questions: Iterator[Mapping[str, Any]],
    answer: Callable[[Mapping[str, Any]], None],
) -> None:
    settings = [parse_spec(label) for label in started["settings"]]
    with in_process_engine(
        started["model"], started["sere"], threads=started["threads"], **started["options"]
    ) as llm:
        session = EngineSession(llm, settings, seed=started["seed"], replay=started["replay"])
        answer({"value": session.describe()})
        for question in questions:
            try:
                answer({"value": _answer(session, **question)})
            except EngineError as error:  # perhaps within a step, so that the engine cannot go on
                answer({"failed": str(error)})
            except SereError as error:  # of this load; the engine is as it was
                answer({"refused": str(error)})


def _answer(session: Session, do: str, of: Any) -> Any:
    if do == "open":
        return session.open(EngineLoad.from_json(of))
    if do == "block":
        return asdict(session.block(of))
    return session.count(of) if do == "count" else session.warm(of)
