"""Let an engine write the calibration texts: as a model of Transformers does, by sampling."""

from __future__ import annotations

from itertools import count
from typing import Any

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.own_texts import end_tokens, gather_texts
from sere.calibrate.packing import Tokens

ROWS = 128
"""Texts that are written at a time."""


def write_tokens_in_engine(llm: Any, tokenizer: Any, config: CalibrationConfig) -> Tokens:
    """Return calibration tokens that the engine's model wrote; see `sere.calibrate.own_texts`.

    Args:
        llm: vLLM's ``LLM``, idle.
        tokenizer: The model's tokenizer.
        config: The number of tokens, their seed (None is 0) and the length of texts.

    Raises:
        DataError: The tokenizer knows no opening, or the model ends every text at once.
    """
    from vllm import SamplingParams

    own = llm.llm_engine.vllm_config.model_config.try_get_generation_config()
    ends = end_tokens(own.get("eos_token_id"), tokenizer)
    numbers = count(config.seed or 0)

    def written(begun: list[list[int]]) -> list[list[int]]:
        params = [
            SamplingParams(
                temperature=1.0, top_p=1.0, max_tokens=max(1, config.seq_len - len(opening)),
                stop_token_ids=ends, seed=next(numbers), detokenize=False,
            )
            for opening in begun
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": opening} for opening in begun]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [
            [*opening, *output.outputs[0].token_ids][: config.seq_len]
            for opening, output in zip(begun, outputs, strict=True)
        ]

    return gather_texts(written, tokenizer, config)
