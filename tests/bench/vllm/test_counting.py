"""What counting the uses of each expert costs: engines that count beside those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sere.bench.vllm.counting import counting_costs
from sere.cli.bench.serve_tables import render
from sere.errors import InputError
from tests.support.records import engine_record
from tests.support.timed_engines import Machine, timing

ROUNDS = [10.0, 20.0, 10.0, 10.0, 10.0, 20.0]
SLOWER = [10.5, 21.0, 10.2, 10.1, 10.4, 21.2]


def record(setting: str, rounds: list[float], **start: Any) -> dict[str, Any]:
    """A record of an engine that was started with such settings."""
    config = {"mode": "compiled", "start": start}
    counts = {"overhead": None, "nothing_changed": None, "case": setting}
    rate = {"tokens_per_s": {"p50": 1000 / rounds[0]}}
    return engine_record(setting, rounds_ms=rounds, config=config, **counts, **rate)


def test_engines_that_count_take_turns_with_those_that_do_not(tmp_path: Path) -> None:
    """All are alive at once and run each load in the same rounds; each setting is compared with itself."""
    machine = Machine()
    records = list(timing(tmp_path, machine, count_experts=True).records())
    kinds = ["sere", "vanilla", "count_experts=True"]
    assert (machine.most, machine.started) == (3, kinds)
    first = [(kind, label) for kind, _, load, label in machine.log if load == "B=8"][:5]
    assert first == [
        ("sere", "off"), ("sere", "sere"), ("vanilla", "vanilla"),
        ("count_experts=True", "off"), ("count_experts=True", "sere"),
    ]  # fmt: skip
    found = [
        (one.counting["load"], one.counting["setting"], one.time.value) for one in counting_costs(records)
    ]
    assert found == [(load, setting, 1.0) for load in ("B=8", "B=16") for setting in ("off", "sere")]


def test_without_the_flag_no_engine_counts(tmp_path: Path) -> None:
    """And nothing is compared."""
    machine = Machine()
    assert counting_costs(list(timing(tmp_path, machine).records())) == []
    assert machine.started == ["sere", "vanilla"]


def test_the_cost_is_taken_round_by_round() -> None:
    """Of the same setting in an engine with the same other options; a replay counts nothing."""
    without, counting = record("sere", ROUNDS), record("sere", SLOWER, count_experts=True)
    others = [
        record("replay sere", ROUNDS), record("replay sere", ROUNDS, count_experts=True),
        record("sere", ROUNDS, use_scale=False, count_experts=True), record("off", ROUNDS),
    ]  # fmt: skip
    (cost,) = counting_costs([*others, without, counting])
    assert (cost.without, cost.counting) == (without, counting)
    assert (cost.time.value, cost.time.low, cost.time.high) == pytest.approx((1.045, 1.01, 1.06))
    with pytest.raises(InputError, match="equal numbers of rounds"):
        counting_costs([without, record("sere", SLOWER[:5], count_experts=True)])


def test_the_cost_is_below_the_times() -> None:
    """With both rates; without an interval where there are too few rounds for one."""
    without, counting = record("sere", ROUNDS), record("sere", SLOWER, count_experts=True)
    *_, last = render([without, counting]).splitlines()
    assert last.split() == ["sere", "B=8", "100.0", "95.2", "1.0450x", "1.0100", "to", "1.0600"]
    few = [record("sere", ROUNDS[:3]), record("sere", SLOWER[:3], count_experts=True)]
    assert render(few).splitlines()[-1].split()[-2:] == ["1.0500x", "-"]
    assert "counted" not in render([without])
