"""Keep re-routed tokens out of other requests' prefix cache, in the process that schedules an engine.

A block of vLLM's prefix cache is found by a hash of its tokens and of all before them. Prompts are computed
exactly, so a block that holds prompt tokens only is what it is without re-routing; a block that also holds
decoded tokens is not. With ``share_rerouted_blocks: false`` such a block gets a hash that contains the
request's id. No other request can find it, and the request itself still can, after a preemption.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sere.errors import UnsupportedEngine
from sere.integrations.vllm.plugin_config import PluginConfig, section

SETTING = "share_rerouted_blocks"
_MARK = "sere"
_EXACT = "sere_exact_tokens"

Hasher = Callable[[Any], list[bytes]]


def check_sharing(config: PluginConfig, vllm_config: Any) -> None:
    """Refuse to keep blocks apart where that cannot be promised.

    Args:
        config: The plug-in's settings.
        vllm_config: vLLM's ``VllmConfig``.

    Raises:
        UnsupportedEngine: A connector may find blocks by hashes of its own, or this vLLM hashes them in
            another way.
    """
    if config.share_rerouted_blocks:
        return
    way_out = f'start without it, or without "{SETTING}": false'
    if getattr(vllm_config, "kv_transfer_config", None) is not None:
        raise UnsupportedEngine(
            f"KV connector: it may find blocks by hashes of its own, so that re-routed tokens could reach "
            f"other requests; {way_out}"
        )
    core = import_module("vllm.v1.engine.core").EngineCore
    if not hasattr(core, "preprocess_add_request"):
        raise UnsupportedEngine(
            f'{SETTING}: this release of vLLM takes in requests in another way; leave out "{SETTING}": false'
        )


def watch_engine_core(module: Any) -> None:
    """Let the engines of this process keep blocks apart if their settings ask for it.

    Args:
        module: ``vllm.v1.engine.core``.
    """
    take_in = getattr(module.EngineCore, "preprocess_add_request", None)
    if take_in is None or hasattr(take_in, _MARK):
        return

    @functools.wraps(take_in)
    def preprocess_add_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Not when the engine is made: vLLM loads its plug-ins only after that has begun.
        if not hasattr(self, "sere_keeps_apart"):
            self.sere_keeps_apart = keep_apart(self)
        return take_in(self, *args, **kwargs)

    setattr(preprocess_add_request, _MARK, True)
    module.EngineCore.preprocess_add_request = preprocess_add_request


def keep_apart(core: Any) -> bool:
    """Give an engine a hasher that keeps blocks apart, if its settings ask for it; return whether they do.

    Args:
        core: vLLM's ``EngineCore``.
    """
    values = section(core.vllm_config)
    if not isinstance(values, dict) or values.get(SETTING, True):
        return False
    # Without prefix caching there is none.
    if core.request_block_hasher is not None:
        core.request_block_hasher = hashing_apart(
            core.request_block_hasher,
            int(core.scheduler.hash_block_size),
            prompts_are_exact=values.get("phases", "decode") != "all",
        )
    return True


def hashing_apart(hasher: Hasher, block_size: int, *, prompts_are_exact: bool) -> Hasher:
    """Return a hasher whose hashes of blocks with re-routed tokens belong to one request alone.

    Args:
        hasher: vLLM's: returns the hashes of a request's full blocks that have none yet.
        block_size: Tokens of a hashed block.
        prompts_are_exact: Whether prompts are computed without re-routing.
    """

    def hashed(request: Any) -> list[bytes]:
        first = len(request.block_hashes)
        exact = _exact_tokens(request, prompts_are_exact) // block_size
        return [
            found if first + number < exact else _of_request(found, request.request_id)
            for number, found in enumerate(hasher(request))
        ]

    return hashed


def _exact_tokens(request: Any, prompts_are_exact: bool) -> int:
    """Return how many tokens of a request are computed without re-routing, from its first on.

    It is kept on the request: a session that streams its input counts decoded tokens among its prompt later.
    """
    known = getattr(request, _EXACT, None)
    if known is None:
        known = int(request.num_prompt_tokens) if prompts_are_exact else 0
        setattr(request, _EXACT, known)
    return int(known)


def _of_request(found: bytes, request_id: str) -> bytes:
    return hashlib.sha256(b"sere\0" + found + request_id.encode()).digest()
