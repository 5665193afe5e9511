"""Options of vLLM on the command line of ``sere bench serve``."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sere.bench.vllm.engine_options import (
    OF_ENGINE,
    OF_SERVER,
    as_arguments,
    parse_engine_options,
    start_options,
)
from sere.bench.vllm.serve_plan import ServePlan
from sere.errors import ConfigError
from sere.policies.spec import parse_specs


def test_values_are_json_or_words() -> None:
    """A word needs no quotes; numbers, truth values, lists and objects are JSON; dashes are underscores."""
    texts = ["max-num-seqs=64", "quantization=fp8", 'kv_cache_dtype="fp8"', "--enable_dbo=true",
             'hf_overrides={"rope": {"a": 1.5}}', "cudagraph_capture_sizes=[1, 2]",
             "model_impl=a=b"]  # fmt: skip
    options = parse_engine_options(texts, OF_ENGINE)
    assert options == {
        "max_num_seqs": 64, "quantization": "fp8", "kv_cache_dtype": "fp8", "enable_dbo": True,
        "hf_overrides": {"rope": {"a": 1.5}}, "cudagraph_capture_sizes": [1, 2], "model_impl": "a=b",
    }  # fmt: skip
    assert as_arguments(options | {"enforce_eager": False}) == [
        "--max-num-seqs", "64", "--quantization", "fp8", "--kv-cache-dtype", "fp8", "--enable-dbo",
        "--hf-overrides", '{"rope": {"a": 1.5}}', "--cudagraph-capture-sizes", "1", "2",
        "--model-impl", "a=b", "--no-enforce-eager",
    ]  # fmt: skip


@pytest.mark.parametrize("taken", [OF_ENGINE, OF_SERVER], ids=["engine", "server"])
@pytest.mark.parametrize(
    ("texts", "text"),
    [
        (["max_num_seqs"], "'max_num_seqs': expected KEY=VALUE"),
        (["=3"], "'=3': expected KEY=VALUE"),
        (["block_size=1", "block-size=2"], "block_size: expected it once, got it twice"),
        (['hf_overrides={"a"'], "hf_overrides: expected JSON or a word"),
        (["block_size=null"], "block_size: expected a value, got null"),
        (["dtype=float16"], "dtype: sere bench serve sets it itself; use --dtype"),
        (["trust_remote_code=true"], "trust_remote_code: sere .* sets it itself; use --trust-remote-code"),
    ],
)
def test_refused_options(texts: list[str], text: str, taken: Mapping[str, str]) -> None:
    """What cannot be read, or is ours to set, is named with what to do."""
    with pytest.raises(ConfigError, match=f"--engine-option {text}"):
        parse_engine_options(texts, taken)


def test_parallel_engines_need_a_server() -> None:
    """An engine of this process has one worker; a server may have more."""
    with pytest.raises(ConfigError, match=r"tensor_parallel_size: .*; .*add --server"):
        parse_engine_options(["tensor_parallel_size=2"], OF_ENGINE)
    assert parse_engine_options(["tensor_parallel_size=2"], OF_SERVER) == {"tensor_parallel_size": 2}


def test_given_options_take_the_place_of_our_room_alone() -> None:
    """Room for requests is ours unless given; every option that is not room is refused by both tables."""
    plan = ServePlan(settings=parse_specs([]), prompt=100, steps=10, engine_options={"max_num_seqs": 3})
    room = {"requests": 64, "longest": 110, "prompt_tokens": 6400}
    options = start_options(plan, **room, dtype="float32")
    assert (options["max_num_seqs"], options["max_num_batched_tokens"]) == (3, 6400)
    assert (options["max_model_len"], options["dtype"], options["enforce_eager"]) == (118, "float32", True)
    assert options["trust_remote_code"] is False
    assert start_options(plan, **room, dtype="float32", trust_remote_code=True)["trust_remote_code"] is True
    ours = {"max_num_seqs", "max_num_batched_tokens", "max_model_len"}
    assert set(options) - ours == set(options) & set(OF_ENGINE) == set(options) & set(OF_SERVER)


def test_each_engine_has_its_own_off() -> None:
    """Settings are grouped by what an engine starts with, and off comes first in each group."""

    def groups(*texts: str) -> list[tuple[dict[str, object], list[str]]]:
        found = ServePlan(settings=parse_specs(texts)).groups()
        return [(start, [setting.label for setting in settings]) for start, settings in found]

    assert groups() == [({}, ["off"])]
    assert groups(
        "sere:select_top_k=2,targets=active",
        "sere:select_top_k=1",
        "topk:select_top_k=2",
        "sere:select_top_k=2",
    ) == [
        ({"targets": "active"}, ["off", "sere:select_top_k=2,targets=active", "topk:select_top_k=2"]),
        ({}, ["off", "sere:select_top_k=1", "sere:select_top_k=2"]),
    ]
