"""Settings as typed: what they mean, whence their options come, and how wrong ones are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError, InputError
from sere.policies import POLICIES, Sere
from sere.policies.baseline import Baseline, LayerBatch
from sere.policies.former_labels import normalize_label
from sere.policies.options import options_of
from sere.policies.spec import check_off_first, parse_spec, parse_specs
from sere.reroute import Routing
from tests.support.policies import EXAMPLES, example

LABELS = [
    *EXAMPLES,
    "sere",
    "sere:tier=fast",
    "sere:active_experts=24,cap=true",
    "sere:active_experts=0.25",
    "sere:active_experts=1.0",
    "sere:active_experts=auto",
    "sere:active_experts=1-8/8-24/32-36",
    "sere:paper,select_top_k=2",
    "sere:paper,select_top_k=2,threshold=0.3",
    "random:select_top_k=1,active_experts=8-24/32-36",
    "sere:select_top_k=2,threshold=0.3,active_experts=32,use_scale=true,merge=same,backend=torch",
    "random:select_top_k=1,seed=3",
]


@pytest.mark.parametrize("text", LABELS)
def test_labels_read_back(text: str) -> None:
    """A setting's label is what one would type to get it again."""
    spec = parse_spec(text)
    assert spec.label == text
    assert parse_spec(spec.label) == spec
    assert spec.needs_table == (spec.name in ("sere", "pool", "prune"))


def test_the_symbols_of_older_records_are_read() -> None:
    """S, rho, scale and drop mean the long names; labels are written with these only."""
    short = parse_spec("sere:S=2,rho=0.3,scale=true,targets=active,active_experts=8")
    long = parse_spec("sere:active_experts=8,use_scale=yes,targets=active,threshold=.30,select_top_k=2")
    assert short.options == long.options
    expected = "sere:select_top_k=2,threshold=0.3,active_experts=8,targets=active,use_scale=true"
    assert short.label == long.label == expected
    assert RerouteConfig.from_mapping(short.options) == RerouteConfig(
        select_top_k=2, threshold=0.3, use_scale=True, targets="active", active_experts=8
    )


@pytest.mark.parametrize(
    ("label", "normalized"),
    [
        ("sere:S=2", "sere:paper,select_top_k=2"),
        ("sere:S=1,rho=0.3,merge=same", "sere:paper,select_top_k=1,threshold=0.3,merge=same"),
        ("sere:S=2,scale=true", "sere:select_top_k=2,active_experts=0"),
        (
            "sere:S=1,targets=active",
            "sere:select_top_k=1,active_experts=0,targets=active,use_scale=false",
        ),
        ("sere:S=2,min_active=32,scale=true", "sere:select_top_k=2,min_active=32,use_scale=true"),
        ("sere:S=1,min_active=16", "sere:select_top_k=1,min_active=16"),
        ("random:S=1", "random:select_top_k=1,active_experts=0"),
        ("random:S=1,min_active=24", "random:select_top_k=1,min_active=24"),
        ("lynx:drop=0.5", "lynx:drop_share=0.5"),
        ("topk:S=4", "topk:select_top_k=4"),
        ("sere:use_scale=true,select_top_k=1", "sere:select_top_k=1,use_scale=true"),
        ("sere", "sere"),
        ("off", "off"),
        ("vanilla", "vanilla"),
    ],
    ids=[
        "paper", "order", "factors", "targets", "filled by weight", "filled, no factors", "random",
        "random filled", "drop", "topk", "today", "defaults", "off", "no setting",
    ],
)  # fmt: skip
def test_labels_of_older_records_are_normalized(label: str, normalized: str) -> None:
    """A label says what was measured; one that today's settings cannot say keeps the name it had."""
    assert normalize_label(label) == normalized


def test_off_comes_first_and_nothing_twice() -> None:
    """The unmodified model is always measured, first; a setting named twice is measured once."""
    specs = parse_specs(["sere:S=1", "topk:S=1", "off", "sere:select_top_k=1"])
    assert [spec.label for spec in specs] == ["off", "sere:select_top_k=1", "topk:select_top_k=1"]


def test_without_off_first_there_is_nothing_to_compare_with() -> None:
    """The text names the setting that came first."""
    check_off_first(parse_specs([]))
    with pytest.raises(InputError, match=r"must be 'off', .* got topk:select_top_k=1"):
        check_off_first([parse_spec("topk:S=1")])


def test_thresholds_that_differ_are_two_settings() -> None:
    """A label keeps every digit that tells its number from others, and no more."""
    numbers = ["0.3", "0.3000001", "1", "1e-07"]
    texts = [f"sere:select_top_k=1,threshold={number}" for number in numbers]
    specs = parse_specs(texts)
    assert [spec.label for spec in specs] == ["off", *texts]
    assert specs[2].options["threshold"] == 0.3000001


def test_a_rule_is_built_with_its_options() -> None:
    """A seed of the run is taken by rules that draw, unless the setting has its own."""
    assert parse_spec("random:S=1").build(seed=7).describe()["seed"] == 7
    assert parse_spec("random:S=1,seed=3").build(seed=7).describe()["seed"] == 3
    assert parse_spec("topk:S=1").build(seed=7).describe() == {"policy": "topk", "select_top_k": 1}
    with pytest.raises(ConfigError, match="sere:select_top_k=1: needs a similarity table; give one with"):
        parse_spec("sere:S=1").build()


def test_options_are_the_fields_of_the_class() -> None:
    """Type, need and choices of an option come from the dataclass; nothing is listed by hand."""

    @dataclass(frozen=True)
    class Every(Baseline):
        name: ClassVar[str] = "every"

        share: float
        count: int | None = None
        exact: bool = False
        where: str = "here"
        pairs: tuple[int, ...] = ()

        def choose(self, batch: LayerBatch) -> Routing:
            return Routing(batch.ids, batch.weights)

    options = options_of(Every)
    assert {name: (option.form, option.required) for name, option in options.items()} == {
        "share": ("X", True),
        "count": ("N", False),
        "exact": ("true|false", False),
        "where": ("WORD", False),
    }
    assert options_of(Sere)["targets"].form == "primary|active"


@pytest.mark.parametrize("name", POLICIES)
def test_records_describe_a_rule_by_its_name_and_options(name: str) -> None:
    """Every option of the example is in the description, JSON-ready."""
    described = example(name, 6).describe()
    given = parse_spec(f"{name}:{POLICIES[name].example}").options
    assert described["policy"] == name
    assert {key: described[key] for key in given} == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ser:S=1", "unknown policy 'ser'; did you mean 'sere'?"),
        ("sere:S=1,target=active", "unknown option 'target'; did you mean 'targets'?"),
        ("topk:S=1,rho=0.3", "unknown option 'rho' (valid: select_top_k)"),
        ("sere:S=1,table=x", "unknown option 'table'"),
        ("off:S=1", "unknown option 'S'; off takes none"),
        ("topk", "topk needs select_top_k, e.g. topk:select_top_k=2"),
        ("sere:paper", "select_top_k is missing: the preset 'paper' needs it, e.g. 2"),
        ("sere:paper,select_top_k=2,active_experts=8", "active_experts: the preset 'paper' has 0, got 8"),
        ("sere:paper,paper,select_top_k=2", "preset is given twice; leave one out"),
        ("topk:paper,select_top_k=2", "unknown option 'paper' (valid: select_top_k)"),
        (
            "sere:active_experts=many",
            "active_experts expects a number, a share such as 0.25, auto, or points",
        ),
        (
            "sere:active_experts=8-24/8-32",
            "points (rows, experts) such as [[8, 24], [32, 32]], got [[8, 24], [8",
        ),
        ("sere:active_experts=1.5", "active_experts: expected a number of experts such as 32, a share"),
        ("sere:min_active=8", "unknown option 'min_active'"),
        ("lynx", "lynx needs drop_share, e.g. lynx:drop_share=0.5"),
        ("sere:S=two", "S expects an integer, got 'two'"),
        ("sere:select_top_k", "select_top_k expects an integer, got ''"),
        ("sere:S=1,rho=high", "rho expects a number, got 'high'"),
        ("sere:S=1,scale=maybe", "scale expects true or false, got 'maybe'"),
        ("sere:S=0", "select_top_k: expected an integer of at least 1, got 0"),
        ("topk:S=0", "select_top_k: expected an integer of at least 1, got 0"),
        ("sere:S=1,select_top_k=2", "select_top_k is given twice; leave one out"),
        ("sere:S=1,targets=activ", "did you mean 'active'"),
    ],
)
def test_wrong_settings_are_refused_with_the_nearest_name(text: str, message: str) -> None:
    """Every mistake is named, with what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse_spec(text)
    assert message in str(caught.value)
