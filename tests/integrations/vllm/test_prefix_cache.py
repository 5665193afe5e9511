"""Cached blocks that hold re-routed tokens are kept from other requests, if settings ask for it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sere.config import RerouteConfig
from sere.errors import ConfigError, UnsupportedEngine
from sere.integrations.vllm.plugin_config import PluginConfig
from sere.integrations.vllm.prefix_cache import check_sharing, hashing_apart, keep_apart, watch_engine_core

BLOCK = 4


class Request:
    """vLLM's ``Request`` in miniature: it asks its hasher whenever it has more tokens."""

    def __init__(self, name: str, prompt: list[int], hasher: Callable[[Any], list[bytes]]) -> None:
        self.request_id, self.num_prompt_tokens, self.tokens = name, len(prompt), list(prompt)
        self.block_hashes: list[bytes] = []
        self.hasher = hasher
        self.add([])

    def add(self, tokens: list[int]) -> None:  # noqa: D102
        self.tokens += tokens
        self.block_hashes += self.hasher(self)


def vllm_hasher(request: Any) -> list[bytes]:
    """Hash each full block that has no hash yet, with the hash before it, as vLLM does."""
    found, before = [], request.block_hashes[-1] if request.block_hashes else b""
    for start in range(len(request.block_hashes) * BLOCK, len(request.tokens) - BLOCK + 1, BLOCK):
        before = repr((before, request.tokens[start : start + BLOCK])).encode()
        found.append(before)
    return found


PROMPT = [*range(10)]
APART = hashing_apart(vllm_hasher, BLOCK, prompts_are_exact=True)


def test_blocks_of_prompts_are_shared() -> None:
    """Blocks that hold prompt tokens only have vLLM's own hashes, however far the request decodes."""
    request = Request("a", PROMPT, APART)
    request.add([20, 21, 22])
    assert request.block_hashes[:2] == Request("b", PROMPT, vllm_hasher).block_hashes


@pytest.mark.parametrize("pieces", [[[20, 21], [22, 23, 24, 25]], [[20, 21, 22, 23, 24, 25]]])
def test_blocks_with_decoded_tokens_are_not(pieces: list[list[int]]) -> None:
    """A later request whose prompt holds another's answer finds the first prompt's blocks and no more."""
    request = Request("a", PROMPT, APART)
    for piece in pieces:
        request.add(piece)
    later = Request("b", request.tokens, APART)
    assert len(request.block_hashes) == len(later.block_hashes) == 4
    same = [mine == other for mine, other in zip(request.block_hashes, later.block_hashes, strict=True)]
    assert same == [True, True, False, False]


def test_a_request_finds_its_own_blocks_again() -> None:
    """Hashed once more, after a preemption, a request's blocks have the hashes that they had."""
    request = Request("a", PROMPT, APART)
    request.add([20, 21, 22, 23, 24, 25])
    first = list(request.block_hashes)
    request.block_hashes.clear()
    request.add([])
    assert request.block_hashes == first


def test_sessions_that_stream_their_input() -> None:
    """A session counts decoded tokens among its prompt later: their blocks stay its own."""
    request = Request("a", PROMPT, APART)
    request.add([20, 21])
    request.num_prompt_tokens = 14
    request.add([30, 31])
    assert request.block_hashes[2] != Request("b", request.tokens, APART).block_hashes[2]


def test_prompts_that_are_rerouted_are_not_shared_at_all() -> None:
    """With ``phases="all"`` no block is exact, so none is another's."""
    apart = hashing_apart(vllm_hasher, BLOCK, prompts_are_exact=False)
    first, second = (Request(name, PROMPT, apart).block_hashes for name in "ab")
    assert not {*first} & {*second}


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        (None, False),
        ({}, False),
        ({"share_rerouted_blocks": True}, False),
        ({"share_rerouted_blocks": False}, True),
    ],
    ids=["no sere", "default", "shared", "apart"],
)
def test_only_engines_that_ask_for_it(settings: Any, apart: bool) -> None:
    """Hashes change only in engines whose settings say so, from their first request on."""

    class EngineCore:
        def __init__(self) -> None:
            additional = {} if settings is None else {"sere": settings}
            self.vllm_config = SimpleNamespace(additional_config=additional)
            self.request_block_hasher = vllm_hasher
            self.scheduler = SimpleNamespace(hash_block_size=BLOCK)

        def preprocess_add_request(self, name: str) -> Request:
            return Request(name, [], self.request_block_hasher)

    module = SimpleNamespace(EngineCore=EngineCore)
    watch_engine_core(module)
    watch_engine_core(module)
    core = EngineCore()
    requests = [core.preprocess_add_request(name) for name in "ab"]
    for request in requests:
        request.add([*range(8)])
    assert (requests[0].block_hashes != requests[1].block_hashes) == apart


def test_engines_without_a_prefix_cache() -> None:
    """Where nothing is cached, nothing is kept apart."""
    config = SimpleNamespace(additional_config={"sere": {"share_rerouted_blocks": False}})
    assert keep_apart(SimpleNamespace(vllm_config=config, request_block_hasher=None))


def test_connectors_are_refused() -> None:
    """A connector may find blocks by hashes of its own: what cannot be promised is refused."""
    config = PluginConfig(reroute=RerouteConfig(), share_rerouted_blocks=False)
    with pytest.raises(
        UnsupportedEngine, match=r'KV connector: .* or without "share_rerouted_blocks": false'
    ):
        check_sharing(config, SimpleNamespace(kv_transfer_config=object()))
    check_sharing(PluginConfig(reroute=RerouteConfig()), SimpleNamespace(kv_transfer_config=object()))
    with pytest.raises(ConfigError, match="share_rerouted_blocks: expected true or false, got 0"):
        PluginConfig.from_mapping({"share_rerouted_blocks": 0})


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
def test_hashes_of_vllm_itself() -> None:
    """With vLLM's own requests and hashes, a second request finds the blocks of the prompt and no more."""
    pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request as Real

    init_none_hash(sha256)
    apart = hashing_apart(get_request_block_hasher(BLOCK, sha256), BLOCK, prompts_are_exact=True)

    def request(name: str, prompt: list[int]) -> Any:
        return Real(name, prompt, SamplingParams(max_tokens=8), None, block_hasher=apart)

    first = request("a", PROMPT)
    for token in range(20, 26):
        first.append_output_token_ids(token)
    second = request("b", list(first.all_token_ids))
    same = [mine == other for mine, other in zip(first.block_hashes, second.block_hashes, strict=True)]
    assert same == [True, True, False, False]
