"""Which settings make vLLM compile again."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from typing import Any

import pytest

from sere.integrations.vllm.worker.compile_key import keep_settings_out


class Config:
    """vLLM's ``VllmConfig`` in miniature: its hash is over all of ``additional_config``."""

    def __init__(self, sere: dict[str, Any], **others: Any) -> None:
        self.additional_config = {"sere": sere, **others}

    def compute_hash(self) -> str:
        """Return the key."""
        return hashlib.sha256(json.dumps(self.additional_config, sort_keys=True).encode()).hexdigest()


def key(sere: dict[str, Any], **others: Any) -> str:
    config = Config(sere, **others)
    keep_settings_out(config)
    found = config.compute_hash()
    assert config.additional_config == {"sere": sere, **others}
    return found


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"log_seconds": 5}, True), ({"table": "other.sere"}, True), ({"active_experts": 9}, True),
        ({"metrics_port": 9000}, True), ({"request_tiers": []}, True), ({"enabled": False}, True),
        ({"merge": "same"}, False), ({"cap": True}, False), ({"backend": "torch"}, False),
        ({"flatten": "off"}, False), ({"count_experts": True}, False),
    ],
    ids=str,
)  # fmt: skip
def test_settings_in_the_key(changed: dict[str, Any], same: bool) -> None:
    """Only what compiled code holds as a constant changes the key; what others put there still does."""
    assert (key({"table": "a.sere"} | changed) == key({"table": "a.sere"})) is same
    assert key({}, other=1) != key({}, other=2)


def test_copies_have_keys_of_their_own() -> None:
    """A copy of the configuration, such as a drafter's, hashes what it holds itself."""
    config = Config({"log_seconds": 5}, other=1)
    keep_settings_out(config)
    other = copy.deepcopy(config)
    assert other.compute_hash() == config.compute_hash() == key({}, other=1)
    other.additional_config["other"] = 2
    assert other.compute_hash() == key({}, other=2)
    assert config.compute_hash() == key({}, other=1)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_key_of_a_real_configuration() -> None:
    """The real configuration takes it: with another port, the key is the same, in copies too."""
    config = pytest.importorskip("vllm.config", reason="needs vLLM: make test-vllm")
    found = []
    for port in (9000, 9001):
        real = config.VllmConfig(additional_config={"sere": {"metrics_port": port}})
        before = real.compute_hash()
        keep_settings_out(real)
        copies = [pickle.loads(pickle.dumps(real)), copy.deepcopy(real)]
        found.append((before, real.compute_hash()))
        assert {one.compute_hash() for one in copies} == {real.compute_hash()}
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]
