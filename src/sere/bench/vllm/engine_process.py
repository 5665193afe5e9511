"""Start an engine in a process of its own, whose memory is given back when it ends, and time blocks there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sere.bench.vllm.blocks import EngineBlock
from sere.bench.vllm.engine_loads import EngineLoad
from sere.engines.environment import end_session, engine_environment, last_lines
from sere.errors import EngineFailure, InputError
from sere.policies.spec import PolicySpec

_END_S = 10

_MAIN = "from sere.bench.vllm.engine_child import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStart:
    """How an engine is started.

    Attributes:
        model: The checkpoint's folder.
        sere: Settings of re-routing; None for an engine that never loads the plug-in.
        settings: What takes turns in it, ``off`` first; none where ``sere`` is None.
        options: Further arguments of vLLM's ``LLM``; JSON-ready.
        threads: Threads of torch; None leaves them to vLLM.
        seed: Of prompts and of rules that draw.
        replay: As for ``EngineSession``.
    """

    model: Path
    sere: Mapping[str, Any] | None
    settings: Sequence[PolicySpec]
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    seed: int = 0
    replay: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "model": str(self.model),
            "sere": None if self.sere is None else dict(self.sere),
            "settings": [setting.label for setting in self.settings],
            "options": dict(self.options),
            "threads": self.threads,
            "seed": self.seed,
            "replay": self.replay,
        }


class RemoteSession:
    """The session of an engine in another process; see ``Session``.

    Its methods raise `InputError` if the engine refuses a load, and `EngineFailure` if the engine has ended.

    Attributes:
        pid: The process.
    """

    def __init__(self, process: subprocess.Popen[str], answers: TextIO, log: Path) -> None:
        self._process, self._answers, self._log = process, answers, log
        self._described: dict[str, Any] = {}
        self.pid = process.pid

    def start(self, how: EngineStart) -> None:
        """Wait until the engine has started.

        Raises:
            EngineFailure: It did not.
        """
        self._described = self._ask(how.to_json())

    def describe(self) -> dict[str, Any]:
        """Return what `Session` says."""
        return self._described

    def open(self, load: EngineLoad) -> list[str]:
        """Return what `Session` says."""
        labels: list[str] = self._ask({"do": "open", "of": load.to_json()})
        return labels

    def count(self, label: str) -> dict[str, Any]:
        """Return what `Session` says."""
        counts: dict[str, Any] = self._ask({"do": "count", "of": label})
        return counts

    def warm(self, label: str) -> None:
        """Run what `Session` says."""
        self._ask({"do": "warm", "of": label})

    def block(self, label: str) -> EngineBlock:
        """Run and time what `Session` says."""
        return EngineBlock.from_json(self._ask({"do": "block", "of": label}))

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the missing answer says
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._answers.readline()
        if not line:
            code = self._process.wait()
            raise EngineFailure(f"the engine's process ended with code {code}; {last_lines(self._log)}")
        answer = json.loads(line)
        if "refused" in answer:
            # Without a description the engine has not started; else it refuses one load.
            raise (InputError if self._described else EngineFailure)(answer["refused"])
        if "failed" in answer:
            raise EngineFailure(f"{answer['failed']}; {last_lines(self._log)}")
        return answer["value"]


@contextmanager
def engine_process(how: EngineStart, log: Path) -> Iterator[RemoteSession]:
    """Start an engine in a process of its own, wait until it can be timed, and end the process.

    Args:
        how: What is started.
        log: Where vLLM's output goes; appended to.

    Raises:
        EngineFailure: The engine did not start, or its process ended; the text has the reason.
    """
    threads = {} if how.threads is None else {"OMP_NUM_THREADS": str(how.threads)}
    reading, writing = os.pipe()
    with log.open("a") as output, os.fdopen(reading) as answers:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(writing)], stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, text=True, pass_fds=[writing], start_new_session=True,
                env=engine_environment(how.sere) | threads,
            )  # fmt: skip
        finally:
            os.close(writing)
        try:
            session = RemoteSession(process, answers, log)
            session.start(how)
            yield session
        finally:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            end_session(process, _END_S)
