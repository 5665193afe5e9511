"""An engine that is timed: the ways to run it, and a block under each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any, Protocol

from sere.bench.overhead import Overhead
from sere.bench.replay import Recording, Way
from sere.bench.vllm.blocks import EngineBlock, make_prompts, run_block
from sere.bench.vllm.engine_loads import EngineLoad
from sere.bench.vllm.replay import record_routing, replayed, timed_routing
from sere.engines.in_process import state_of
from sere.engines.settings import counted_changes, is_own, is_served, live_changes, routed
from sere.integrations.vllm import configure, read_stats
from sere.policies.spec import PolicySpec
from sere.provenance import provenance
from sere.summaries import summarize_layers

VANILLA = "vanilla"
"""The one way to run an engine that never loaded the plug-in."""

NOT_COUNTED: Mapping[str, Any] = {
    "experts": None, "overhead": None, "nothing_changed": None, "flattening": None, "replayed": None,
}  # fmt: skip
"""What is counted where nothing of sere is there to count."""

_WARM_TOKENS = 3


class Session(Protocol):
    """A running engine, in this process or in another one."""

    def describe(self) -> dict[str, Any]:
        """Return ``subject`` (what only the running engine knows) and ``provenance``; JSON-ready."""
        ...

    def open(self, load: EngineLoad) -> list[str]:
        """Prepare a load and return the labels of the ways to run it, the baseline first."""
        ...

    def count(self, label: str) -> dict[str, Any]:
        """Run a block, not for its time but for the keys of `NOT_COUNTED`."""
        ...

    def warm(self, label: str) -> None:
        """Run a short block that is not timed."""
        ...

    def block(self, label: str) -> EngineBlock:
        """Run and time a block."""
        ...


class EngineSession:
    """An engine of this process.

    Args:
        llm: The engine.
        settings: What takes turns in it, ``off`` first; none for an engine without the plug-in.
        seed: Of prompts and of rules that draw.
        replay: Whether each ``sere`` setting's recorded ids and pairs are also run, without the work of
            computing them.
    """

    def __init__(
        self, llm: Any, settings: Sequence[PolicySpec], *, seed: int = 0, replay: bool = True
    ) -> None:
        self._llm, self._settings, self._seed, self._replay = llm, settings, seed, replay
        self._load: EngineLoad | None = None
        self._prompts: list[list[int]] = []
        self._ways: dict[str, Way] = {}

    def describe(self) -> dict[str, Any]:
        """Return what `Session` says."""
        if not self._settings:
            return {"subject": {}, "provenance": provenance()}
        state = state_of(self._llm)
        subject = {
            "moe_layers": len(state.layers),
            "bytes_per_expert": next((layer.expert_bytes for layer in state.layers.values()), None),
            "expert_kernel": state.kernel,
        }
        return {"subject": subject, "provenance": provenance()}

    def open(self, load: EngineLoad) -> list[str]:
        """Return what `Session` says."""
        self._load = load
        self._prompts = make_prompts(load, self._llm.llm_engine.model_config.get_vocab_size(), self._seed)
        ways = [] if self._settings else [Way(VANILLA, nullcontext)]
        for setting in self._settings:
            way = Way(setting.label, partial(_running, self._llm, setting, self._seed), setting)
            ways.append(way)
            # A replay of prompts' steps would say nothing of decoding.
            if is_own(setting) and self._replay and load.measure == "tpot":
                with way.enter():
                    recording = record_routing(self._llm, self._run)
                # Captured graphs run none of our Python, so there is nothing to replay. Code compiled for a
                # CPU runs it in re-routed steps alone.
                if len(recording.routings) >= self._decode_calls:
                    replay = partial(_replayed, self._llm, setting, self._seed, recording)
                    ways.append(way.replayed(replay, recording))
        self._ways = {way.label: way for way in ways}
        return list(self._ways)

    def count(self, label: str) -> dict[str, Any]:
        """Return what `Session` says."""
        setting, recording = self._ways[label].setting, self._ways[label].recording
        if recording is not None:
            read_stats(self._llm, reset=True)
            self.block(label)
            found = asdict(read_stats(self._llm, reset=True).flattening)
            return dict(NOT_COUNTED) | {"flattening": found, "replayed": recording.describe()}
        if setting is None:
            self.block(label)
            return dict(NOT_COUNTED)
        with _running(self._llm, setting, self._seed, counted=True), timed_routing(self._llm) as spent:
            read_stats(self._llm, reset=True)
            self._run()
            stats = read_stats(self._llm, reset=True)
        experts = summarize_layers(stats.layers)
        layers = experts.pop("layers")
        overhead = None
        if len(spent) >= self._decode_calls > 0 and setting.name != "off":
            decoding = median(spent[-self._decode_calls :])
            overhead = asdict(Overhead(decoding * 1e3, decoding * len(layers)))
        return {
            "experts": experts if layers else None,
            "overhead": overhead,
            "nothing_changed": stats.nothing_changed,
            "flattening": asdict(stats.flattening),
            "replayed": None,
        }

    def warm(self, label: str) -> None:
        """Run what `Session` says."""
        if self._ways[label].recording is None:  # else it would need a recording of its own
            with self._ways[label].enter():
                self._run(tokens=_WARM_TOKENS)

    def block(self, label: str) -> EngineBlock:
        """Run and time what `Session` says."""
        with self._ways[label].enter():
            return self._run()

    def _run(self, tokens: int | None = None) -> EngineBlock:
        assert self._load is not None, "open a load first"
        load = self._load if tokens is None else self._load.shortened(tokens)
        return run_block(self._llm, load, self._prompts)

    @property
    def _decode_calls(self) -> int:
        """How often the routing is called in a block's decode steps; 0 if steps of prompts are among them."""
        assert self._load is not None, "open a load first"
        steps = self._load.requests[0].tokens - 1 if self._load.measure == "tpot" else 0
        return len(state_of(self._llm).layers) * steps


@contextmanager
def _running(llm: Any, setting: PolicySpec, seed: int, *, counted: bool = False) -> Iterator[None]:
    """Let an engine run a setting as it would be served, or so that its experts are counted; off too."""
    if is_served(setting):
        configure(llm, **(counted_changes(setting) if counted else live_changes(setting)))
        yield
        return
    with routed(llm, setting, seed=seed):
        yield


@contextmanager
def _replayed(llm: Any, setting: PolicySpec, seed: int, recording: Recording) -> Iterator[None]:
    """Let an engine run a setting's recorded ids and pairs."""
    with _running(llm, setting, seed), replayed(llm, recording):
        yield
