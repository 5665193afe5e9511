"""Calibrate a checkpoint in an engine of vLLM that is started for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sere.calibrate.assemble import IN_VLLM, make_tables, read_tokens, run_record, text_tokenizer
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.packing import Tokens
from sere.calibrate.pass_folder import PassFolder, resumable_pass, written_tokens
from sere.calibrate.vllm.collect import collect_in_engine
from sere.calibrate.vllm.options import MEMORY, engine_options
from sere.calibrate.vllm.texts import ROWS, write_tokens_in_engine
from sere.checkpoints import load_tokenizer, model_files
from sere.engines.in_process import in_process_engine
from sere.integrations.vllm.start.versions import engine_version
from sere.table import SimilarityTable
from sere.texts import Source


def calibrate_in_vllm(
    path: Path, tokenizer: Any, texts: Source | None, config: CalibrationConfig
) -> dict[str, SimilarityTable]:
    """Start vLLM on a checkpoint, run the texts through it, and end it; see `sere.calibrate`."""
    options = engine_options(config, writes=ROWS if texts is None else 0)
    if tokenizer is None:
        tokenizer = load_tokenizer(path, trust_remote_code=config.trust_remote_code, any_type=True)
    tokenizer = text_tokenizer(tokenizer)
    # Read first, because this fails sooner.
    read = None if texts is None else read_tokens(texts, tokenizer, config)
    run = run_record(IN_VLLM, model_files(path), read, config, **_of_the_engine(config))
    with resumable_pass(config.work_dir, run) as work:
        with in_process_engine(path, **options) as llm:
            tokens = _written(llm, tokenizer, config, work) if read is None else read
            found = collect_in_engine(llm, tokens, config, work)
            engine = _described(llm.llm_engine.vllm_config, found.kernels)
            # The engine can end only when nothing holds it.
            del llm
        return make_tables(found.results, found.identity, tokens, config, engine)


def _written(llm: Any, tokenizer: Any, config: CalibrationConfig, work: PassFolder | None) -> Tokens:
    """Return the tokens that the engine's model writes now, or wrote for an interrupted run."""
    return written_tokens(
        work, tokenizer, config.seq_len, lambda: write_tokens_in_engine(llm, tokenizer, config)
    )


def _of_the_engine(config: CalibrationConfig) -> dict[str, Any]:
    """Return what decides a run's result in vLLM alone; how much memory it may take does not."""
    given = {name: value for name, value in (config.engine_options or {}).items() if name not in MEMORY}
    return {"dtype": None if config.dtype is None else str(config.dtype), "engine_options": given}


def _described(vllm_config: Any, kernels: tuple[str, ...]) -> dict[str, Any]:
    """Return what the engine computed with, for the table's provenance."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return {
        "engine": "vllm",
        "engine_version": engine_version(),
        "device": str(vllm_config.device_config.device_type),
        "kernels": list(kernels),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if model.quantization is None else str(model.quantization),
        "tensor_parallel_size": int(parallel.tensor_parallel_size),
        "pipeline_parallel_size": int(parallel.pipeline_parallel_size),
    }
