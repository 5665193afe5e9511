"""Calibrate a checkpoint in an engine of vLLM that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sere.calibrate.assemble import make_tables, read_tokens, text_tokenizer
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.vllm.collect import collect_in_engine
from sere.calibrate.vllm.options import engine_options
from sere.calibrate.vllm.texts import ROWS, write_tokens_in_engine
from sere.checkpoints import load_tokenizer
from sere.engines.in_process import in_process_engine
from sere.integrations.vllm.start.versions import engine_version
from sere.table import SimilarityTable
from sere.texts import Source


def calibrate_in_vllm(
    path: Path, tokenizer: Any, texts: Source | None, config: CalibrationConfig
) -> dict[str, SimilarityTable]:
    """Start vLLM on a checkpoint, run the texts through it, and end it; see `sere.calibrate`."""
    options = engine_options(config, writes=ROWS if texts is None else 0)
    tokenizer = text_tokenizer(tokenizer or load_tokenizer(path, trust_remote_code=config.trust_remote_code))
    # Read first, because this fails sooner.
    read = None if texts is None else read_tokens(texts, tokenizer, config)
    with in_process_engine(path, **options) as llm:
        tokens = write_tokens_in_engine(llm, tokenizer, config) if read is None else read
        found = collect_in_engine(llm, tokens, config)
        engine = _described(llm.llm_engine.vllm_config, found.kernels)
        # The engine can end only when nothing holds it.
        del llm
    return make_tables(found.results, found.identity, tokens, config, engine)


def _described(vllm_config: Any, kernels: tuple[str, ...]) -> dict[str, Any]:
    """Return what the engine computed with, for the table's provenance."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return {
        "engine": "vllm",
        "engine_version": engine_version(),
        "kernels": list(kernels),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if model.quantization is None else str(model.quantization),
        "tensor_parallel_size": int(parallel.tensor_parallel_size),
        "pipeline_parallel_size": int(parallel.pipeline_parallel_size),
    }
