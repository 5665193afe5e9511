"""Which architectures a release may lack; what is refused for which: the check by name, words of the reason.

Every other check of every architecture works.
"""

from __future__ import annotations

from collections.abc import Mapping

import transformers
from packaging.version import Version

# Folders of ``transformers.models`` that the oldest tested release lacks. Where the installed one lacks them,
# they are not collected.
NEWER: tuple[str, ...] = (
    "bailing_hybrid", "beam", "dots3_note", "flint", "hy_v4_vl", "inkling2", "inkling2_loop", "kolibri1",
    "lara_mini", "mistral_large4", "muse_spark", "unlimited_ocr",
)  # fmt: skip
_ENCODER_DECODER = {"found": "an encoder-decoder model"}
_EVERY_EXPERT = {"found": "it computes every expert for every token"}
_MORE_THAN_HIDDEN = {"layer_by_layer": "a decoder layer passes on .*; expected only hidden states"}

# In releases before the one named.
_BEFORE: tuple[str, Mapping[str, Mapping[str, str]]] = (
    "5.23",
    {
        "aria": {"found": r"takes \(hidden_states, router_logits\)"},
        "aria_text": {"found": r"takes \(hidden_states, router_logits\)"},
        "longcat_flash": {"rivals": "the router returns no floating-point tensor"},
    },
)
_REFUSALS: Mapping[str, Mapping[str, str]] = {
    "diffusion_gemma": {
        "found": r"both layer 0; pass the one .*: model\.model\.encoder or model\.model\.decoder"
    },
    "glm_moe_dsa": _MORE_THAN_HIDDEN,
    "hy_v4": _MORE_THAN_HIDDEN,
    "hy_v4_vl": _MORE_THAN_HIDDEN,
    "inkling2": _MORE_THAN_HIDDEN,
    "inkling2_loop": {"layer_by_layer": "runs decoder layer 2 3 times; expected once"},
    "inkling2_loop_text": {"layer_by_layer": "runs decoder layer 2 3 times; expected once"},
    "inkling2_text": _MORE_THAN_HIDDEN,
    "jetmoe": {"found": "the block around it routes internally"},
    "llama4": _EVERY_EXPERT,
    "llama4_text": _EVERY_EXPERT,
    "mistral_large4": _MORE_THAN_HIDDEN,
    "nllb-moe": _ENCODER_DECODER,
    "openai_privacy_filter": {"layer_by_layer": "no class that generates text"},
    "qwen3_omni_moe": {"found": r"both layer 0; pass the one .*: model\.thinker or model\.talker"},
    "switch_transformers": _ENCODER_DECODER,
    "zaya": _MORE_THAN_HIDDEN,
}


def refusals(name: str) -> Mapping[str, str]:
    """Return what the installed release refuses for a model type: check by name, words of the reason."""
    release, older = _BEFORE
    if Version(transformers.__version__) < Version(release) and name in older:
        return older[name]
    return _REFUSALS.get(name, {})
