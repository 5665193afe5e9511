"""Several engines that are timed: who is alive, who takes turns, what fails, what continues, what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.bench.vllm.duration import Rates, estimate_seconds
from sere.bench.vllm.engine_groups import EngineGroup
from sere.bench.vllm.engine_loads import NAMED_LOADS, EngineLoad, decoding
from sere.bench.vllm.engines import EnginesPlan
from sere.errors import EngineFailure, InputError
from sere.policies.spec import parse_specs
from tests.support.timed_engines import Machine, timing

PAPER = "sere:paper,select_top_k=2"


def test_engines_that_fit_take_turns_block_by_block(tmp_path: Path) -> None:
    """With room for both, a round holds off, the setting and vanilla, in other orders each time."""
    machine = Machine()
    records = list(timing(tmp_path, machine).records())
    assert (machine.most, machine.started) == (2, ["sere", "vanilla"])
    assert [label for *_, load, label in machine.log if load == "B=8"] == [
        "off", "sere", "vanilla", "vanilla", "sere", "off",
    ]  # fmt: skip
    assert [record["case"] for record in records] == [
        f"B={B} {label}" for B in (8, 16) for label in ("off", "sere", "vanilla")
    ]
    by = {record["setting"]: record for record in records[:3]}
    assert by["sere"]["tpot_ms"]["p50"] == by["sere"]["time_ms"]["p50"] == 18
    assert by["sere"]["speedup"]["p50"] == pytest.approx(26 / 18)
    assert by["sere"]["speedup_over_vanilla"]["p50"] == pytest.approx(22 / 18)
    assert by["vanilla"]["speedup"]["p50"] == pytest.approx(26 / 22)
    assert by["sere"]["config"]["visits"] == 1
    assert by["sere"]["config"]["alive_with"] == ["engine vanilla of 4 layers"]
    assert by["sere"]["complete_model"] is None
    assert by["sere"]["provenance"] == {"machine": "m"}


def test_engines_that_do_not_fit_are_visited_in_turns(tmp_path: Path) -> None:
    """With room for one, each is started once per visit, in reverse the second time, and the record says so.

    The last engine of a visit is the first of the next, and stays.
    """
    machine = Machine()
    records = list(timing(tmp_path, machine, "sere", PAPER, room=None).records())
    assert machine.most == 1
    assert machine.started == ["sere", "vanilla", "use_scale=False", "vanilla", "sere"]
    assert {record["config"]["visits"] for record in records} == {2}
    assert all(record["config"]["alive_with"] == [] for record in records)
    assert all(len(record["rounds_ms"]) == 2 for record in records)
    assert len(records) == 2 * 5


def test_engines_share_the_room_that_there_is(tmp_path: Path) -> None:
    """Engines are alive together as far as their weights, caches and code fit."""
    bench = timing(tmp_path, Machine(), "sere", PAPER, depths=(4, 8), room=14 * 10**9)
    assert [[engine.name for engine in wave] for wave in bench.waves] == [
        ["engine sere of 4 layers", "engine vanilla of 4 layers"],
        ["engine use_scale=False of 4 layers"],
        ["engine sere of 8 layers"],
        ["engine vanilla of 8 layers"],
        ["engine use_scale=False of 8 layers"],
    ]


def test_two_depths_give_the_complete_model(tmp_path: Path) -> None:
    """The deeper model's records say what the complete model takes; its fixed part counts once."""
    records = list(timing(tmp_path, Machine(), depths=(4, 8), loads=[decoding(8, 4, 2)]).records())
    assert [record["complete_model"] for record in records if record["subject"]["layers"] == 4] == [None] * 3
    (complete,) = (
        record["complete_model"]
        for record in records
        if record["setting"] == "sere" and record["subject"]["layers"] == 8
    )
    assert (complete["layers"], complete["depths"], complete["ms_per_layer"]) == (48, [4, 8], 2)
    assert complete["time_ms"] == 10 + 48 * 2
    assert complete["speedup_per_layer"]["p50"] == 4 / 2
    assert complete["speedup"]["p50"] == pytest.approx((10 + 48 * 4) / (10 + 48 * 2))


@pytest.mark.parametrize("moment", ["start", "count", "block"])
def test_an_engine_that_fails_is_named_and_the_others_go_on(tmp_path: Path, moment: str) -> None:
    """Whenever it fails, its records are missing and it is not asked again."""

    def refuse(what: str, engine: EngineGroup, load: str) -> None:
        if (what, engine.kind) == (moment, "vanilla"):
            raise EngineFailure("no memory")

    failed: list[tuple[str, str]] = []
    bench = timing(tmp_path, Machine(refuse), failed=failed)
    records = list(bench.records())
    name = "engine vanilla of 4 layers" + ("" if moment == "start" else ", B=8")
    assert failed == [(name, "no memory")]
    assert [record["setting"] for record in records] == ["off", "sere"] * 2
    assert [record["speedup_over_vanilla"] for record in records] == [None] * 4


def test_all_engines_fail(tmp_path: Path) -> None:
    """Where none starts there are no records, and each is named."""

    def refuse(what: str, engine: EngineGroup, load: str) -> None:
        raise EngineFailure("no memory")

    failed: list[tuple[str, str]] = []
    assert list(timing(tmp_path, Machine(refuse), failed=failed).records()) == []
    assert [name for name, _ in failed] == ["engine sere of 4 layers", "engine vanilla of 4 layers"]


def test_a_load_that_an_engine_refuses_is_left_out_there(tmp_path: Path) -> None:
    """Too many requests at once are no reason to lose the other loads of the same engine."""

    def refuse(what: str, engine: EngineGroup, load: str) -> None:
        if (what, load, engine.kind) == ("count", "B=16", "sere"):
            raise InputError("did not all run at once")

    failed: list[tuple[str, str]] = []
    records = list(timing(tmp_path, Machine(refuse), failed=failed).records())
    assert failed == [("engine sere of 4 layers, B=16", "did not all run at once")]
    assert [record["case"] for record in records] == ["B=8 off", "B=8 sere", "B=8 vanilla", "B=16 vanilla"]
    assert records[-1]["speedup"] is None


@pytest.mark.parametrize(
    ("room", "left"), [(10**12, 6), (None, 4)], ids=["all alive: a load", "one alive: a visit"]
)
def test_an_interrupted_timing_continues(tmp_path: Path, room: int | None, left: int) -> None:
    """The same timing runs only what is missing, and its records are those of a timing without a break."""
    for name in ("complete", "broken"):
        (tmp_path / name).mkdir()
    complete, again = Machine(), Machine()
    expected = list(timing(tmp_path / "complete", complete, room=room).records())

    def interrupt(what: str, engine: EngineGroup, load: str) -> None:
        if what == "block" and len(broken.log) == 8:
            raise KeyboardInterrupt

    broken = Machine(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(timing(tmp_path / "broken", broken, room=room).records())
    bench = timing(tmp_path / "broken", again, room=room)
    assert [*bench.earlier(), *bench.records()] == expected
    assert again.log == complete.log[-left:]


def test_the_duration_is_starts_and_blocks(tmp_path: Path) -> None:
    """One more round is one more block of each setting: the bytes of its steps, and its tokens' operations.

    Two rows of a step choose 3 of 4 of the experts; 4 GB of weights, half of them per token.
    """
    rates = Rates(bytes_read=1e9, operations=1e10)

    def seconds(rounds: int) -> float:
        values = {"loads": [decoding(2, 4, 9)], "rounds": rounds, "vanilla": False}
        bench = timing(tmp_path, Machine(), **values)
        return estimate_seconds(bench, rates)

    block = 10 * 4e9 * 0.75 / 1e9 + 4e9 / 2 * (2 * 4 + 2 * 10) / 1e10
    assert seconds(2) - seconds(1) == pytest.approx(4 * block)  # off, sere, its recording and its replay
    assert seconds(1) > 8 * block


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"settings": parse_specs(["topk:select_top_k=1"]), "compiled": True}, ".* in a compiled engine"),
        ({"settings": parse_specs(["sere"])[1:]}, "first setting must be 'off'.*; got sere"),
        ({"loads": []}, "expected a load, and rounds and visits of at least 1, got 0 loads, 3 and 2"),
    ],
)
def test_refused_plans(values: dict[str, Any], text: str) -> None:
    """What no engine can be timed with is refused before one starts."""
    with pytest.raises(InputError, match=text):
        EnginesPlan(**{"settings": parse_specs(["sere"]), "loads": [decoding(1, 1, 2)]} | values)


@pytest.mark.parametrize("load", [decoding(3, 5, 2), *NAMED_LOADS.values()], ids=lambda load: load.label)
def test_loads_travel_to_other_processes(load: EngineLoad) -> None:
    """What is read from JSON is what was written; a shortened load has the same prompts."""
    assert EngineLoad.from_json(load.to_json()) == load
    assert load.shortened(2).prompt_tokens == load.prompt_tokens
    assert load.shortened(2).new_tokens == 2 * len(load.requests)
