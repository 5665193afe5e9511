"""Settings as typed: what they mean and how wrong ones are refused."""

from __future__ import annotations

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError
from sere.policies.spec import parse_spec, parse_specs


def test_short_and_long_names_mean_the_same() -> None:
    """S, rho and scale are the method's symbols for select_top_k, threshold and use_scale."""
    short = parse_spec("sere:S=2,rho=0.3,scale=true,targets=active,min_active=8")
    long = parse_spec("sere:min_active=8,use_scale=yes,targets=active,threshold=.30,select_top_k=2")
    assert short.options == long.options
    assert short.label == long.label == "sere:S=2,rho=0.3,min_active=8,targets=active,scale=true"
    assert short.config() == RerouteConfig(
        select_top_k=2, threshold=0.3, use_scale=True, targets="active", min_active=8
    )


@pytest.mark.parametrize(
    "text", ["off", "random:S=1,seed=3", "topk:S=2", "oea:S=2", "xshare:budget=16", "lynx:drop=0.5"]
)
def test_labels_read_back(text: str) -> None:
    """A setting's label is what one would type to get it again."""
    setting = parse_spec(text)
    assert setting.label == text
    assert parse_spec(setting.label) == setting
    assert not setting.needs_table


def test_off_comes_first_and_nothing_twice() -> None:
    """The unmodified model is always measured, first; a setting named twice is measured once."""
    settings = parse_specs(["sere:S=1", "topk:S=1", "off", "sere:select_top_k=1"])
    assert [setting.label for setting in settings] == ["off", "sere:S=1", "topk:S=1"]


def test_thresholds_that_differ_are_two_settings() -> None:
    """A label keeps every digit that tells its number from others, and no more."""
    texts = ["sere:S=1,rho=0.3", "sere:S=1,rho=0.3000001", "sere:S=1,rho=1", "sere:S=1,rho=1e-07"]
    settings = parse_specs(texts)
    assert [setting.label for setting in settings] == ["off", *texts]
    assert settings[2].options["threshold"] == 0.3000001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ser:S=1", "unknown policy 'ser'; did you mean 'sere'?"),
        ("sere:S=1,target=active", "unknown option 'target'; did you mean 'targets'?"),
        ("topk:S=1,rho=0.3", "unknown option 'rho'"),
        ("off:S=1", "unknown option 'S'; off takes none"),
        ("sere:rho=0.3", "sere needs S, e.g. sere:S=2"),
        ("lynx", "lynx needs drop, e.g. lynx:drop=0.5"),
        ("sere:S=two", "S expects an integer, got 'two'"),
        ("sere:S", "S expects an integer, got ''"),
        ("sere:S=1,rho=high", "rho expects a number, got 'high'"),
        ("sere:S=1,scale=maybe", "scale expects true or false, got 'maybe'"),
        ("sere:S=0", "select_top_k: expected an integer of at least 1, got 0"),
        ("sere:S=1,select_top_k=2", "S is given twice; leave one out"),
        ("sere:S=1,targets=activ", "did you mean 'active'"),
    ],
)
def test_wrong_settings_are_refused_with_the_nearest_name(text: str, message: str) -> None:
    """Every mistake is named, with what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse_spec(text)
    assert message in str(caught.value)
