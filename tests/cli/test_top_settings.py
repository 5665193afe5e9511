"""What holds and what changed, as ``sere top`` says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from sere.cli.top_settings import changes, held, identity
from sere.integrations.vllm.live.view import Live
from tests.support.vllm.live import joined


def now_of(*answers: tuple[float, Mapping[str, Any]], reset_after: int | None = None) -> Any:
    """What a server says after these answers, each of a moment."""
    live = Live("tiny")
    for number, (at, one) in enumerate(answers):
        live.add(one, at)
        if number == reset_after:
            live.note_reset()
    return json.loads(live.body())["now"]


def clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def test_settings_that_hold() -> None:
    """S, M and the shares, how many layers have others, and M for some numbers of rows over all layers."""
    given = joined(0, select_top_k=2, active_experts="auto", threshold=0.5, min_gain=0.0)
    given["settings"]["layers"] = {"1": {"active_experts": 12}}
    given["layers"][1]["settings"] = {"active_experts": [[1, 4], [8, 12], [32, 24], [64, 30]]}
    assert held(now_of((0.0, given))) == [
        ("settings", "S 2, M auto, threshold 0.5, least gain 0, others in 1 layers"),
        ("M by rows", "8 rows: 12 to 24, 32 rows: 24"),
    ]


def test_another_rule_has_other_settings() -> None:
    """What a rule does not have is left out."""
    given = joined(0) | {"settings": {"policy": "topk"}, "layers": []}
    assert held(now_of((0.0, given))) == [("settings", "-")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (24, "24"),
        (0, "0 (no limit by M)"),
        (0.25, "0.25"),
        ("auto", "auto"),
        ([[1, 8], [32, 36]], "1-8/32-36"),
        (
            [[rows, 8] for rows in range(100, 200)],
            "100-8/101-8/102-8/103-8/104-8/105-8/106-8/107-8/108-8/109-8/...",
        ),
    ],
    ids=["number", "none", "share", "auto", "points", "many points"],
)
def test_each_form_of_m(value: Any, text: str) -> None:
    """As it is typed; of many points the first."""
    ((_, said), _) = held(now_of((0.0, joined(0, active_experts=value))))
    assert said == f"S 1, M {text}"


def test_model_and_table() -> None:
    """Sizes, the expert kernel, the table, and the steps in which requests asked for tiers."""
    given = joined(0, layers=3)
    model = ("model", "3 layers, 16 experts, 2 per row, expert kernel TritonExperts")
    table = ("table", "abc, tiers safe, fast")
    assert identity(now_of((0.0, given))) == [model, table]
    given["steps"]["by_tier"] = {"fast": 1200, "safe": 3}
    asked = ("steps by tier", "fast 1,200, safe 3")
    assert identity(now_of((0.0, given))) == [model, table, asked]
    given |= {"kernel": None, "table": {"fingerprint": "", "tiers": []}}
    assert identity(now_of((0.0, given)))[1] == ("table", "-, tiers none")
    assert identity(now_of((0.0, given)))[0][1].endswith("expert kernel not known")


def test_what_changed_and_when() -> None:
    """The newest first; where nobody had looked for long, also since when it may hold."""
    now = now_of(
        (100.0, joined(0, tier="safe", keep={})),
        (101.0, joined(0, tier="fast", select_top_k=3, keep={})),
        (160.0, joined(0, tier="fast", select_top_k=3, keep={"2": [1, 5]}) | {"enabled": False}),
    )
    first = (
        "what changed",
        f"{clock(101)} to {clock(160)}  re-routing: on -> off; "
        'experts that are kept: none -> {"2": [1, 5]}',
    )
    second = ("", f"{clock(101)}  S: 1 -> 3; tier: safe -> fast")
    assert changes(now, 10) == [first, second]
    assert changes(now, 1) == [(first[0], f"{first[1]} (and 1 before)")]


def test_a_reset_is_a_change() -> None:
    """It is named as on the page."""
    now = now_of((1.0, joined(5)), reset_after=0)
    # Noted after the answer that is the last one: the next tells of it.
    assert changes(now, 3) == [("what changed", "nothing since this server was first looked at")]
    now = now_of((1.0, joined(5)), (2.0, joined(0)), reset_after=0)
    ((_, text),) = changes(now, 3)
    assert text.endswith("  counters set to zero")
