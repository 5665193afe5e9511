"""The entry: a model in memory, or a checkpoint, loaded completely or layer by layer."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from torch import nn

from sere.calibrate.assemble import (
    LAYERWISE,
    WHOLE,
    check_texts,
    make_tables,
    read_tokens,
    refuse_rerouted,
    run_record,
    states_size,
    text_tokenizer,
)
from sere.calibrate.config import CalibrationConfig, CalibrationOptions
from sere.calibrate.float32_products import where_computed
from sere.calibrate.in_memory import collect_in_memory, input_device
from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.skeleton import Skeleton, refuse_quantized
from sere.calibrate.layerwise.work_folder import WorkFolder, resumable
from sere.calibrate.memory import fits_memory
from sere.calibrate.own_texts import write_tokens
from sere.calibrate.packing import Tokens
from sere.calibrate.pass_folder import PassFolder, resumable_pass, written_tokens
from sere.calibrate.run_folder import way_of
from sere.calibrate.vllm.run import calibrate_in_vllm
from sere.checkpoints import find_checkpoint, load_model, load_tokenizer, model_files
from sere.checkpoints.device import check_device
from sere.errors import DataError, InputError
from sere.similarity import DEFAULT_METRIC
from sere.structure import find_experts, identity_of
from sere.table import SimilarityTable
from sere.texts import Source
from sere.wrappers import inner_model

# Layer by layer without a work folder, hidden states up to this many bytes stay in memory; more go to disk.
STATES_BYTES = 2**29


@overload
def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = ...,
    texts: Source | None = ...,
    *,
    metric: str = ...,
    **options: Unpack[CalibrationOptions],
) -> SimilarityTable: ...


@overload
def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = ...,
    texts: Source | None = ...,
    *,
    metric: list[str] | tuple[str, ...],
    **options: Unpack[CalibrationOptions],
) -> dict[str, SimilarityTable]: ...


def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = None,
    texts: Source | None = None,
    *,
    metric: str | list[str] | tuple[str, ...] = DEFAULT_METRIC,
    **options: Unpack[CalibrationOptions],
) -> SimilarityTable | dict[str, SimilarityTable]:
    """Measure how well the experts of each layer replace each other.

    Args:
        model: A Transformers model, left as it was found, also inside a wrapper such as a PEFT model; or a
            checkpoint: its path, its hub name, or ``"bundled"``.
        tokenizer: The model's tokenizer; None loads the checkpoint's. Not needed for ``metric="weights"``.
        texts: A ``.txt``, ``.jsonl``, ``.json`` or ``.parquet`` file, a Hugging Face data set's name, or the
            documents themselves: a list (or any iterable) of texts, rows or conversations; see
            `sere.texts.load_texts`. Conversations are written by the tokenizer's chat template. None
            (default) lets the model write its own, sampled at temperature 1; see
            `sere.calibrate.own_texts.write_tokens`.
        metric: A name in `sere.similarity.METRICS` (default ``"projection"``; ``"frobenius"`` for the
            paper's method), or several: all are computed in one pass.
        **options: Keyword arguments, all optional:

            - ``metric_parameters``: Parameters of the metric; for several, a mapping from a metric's name to
              its parameters.
            - ``max_tokens``: At most this many tokens are used (default 51,200).
            - ``seq_len``: Tokens per sequence (default 128); documents are packed without padding.
            - ``batch_size``: Sequences per forward pass (default 8).
            - ``seed``: Seed of the documents' order (default 0); None keeps their order.
            - ``field``: Field or column of the texts (default ``"text"``); if a row has no ``text``, its
              ``messages`` or ``conversations`` are used.
            - ``split``: Split of a Hugging Face data set (default ``"train"``).
            - ``chunk_bytes``: Limit on the bytes of experts' outputs in memory at a time (default 256 MiB).
            - ``sensitivity``: Whether to measure, by gradients, how much losing each expert costs (default
              True). A model that is read layer by layer (``low_memory``) is calibrated without.
            - ``progress``: True (default) shows a bar on a terminal, ``"always"`` everywhere, False never; or
              what shows it, see `sere.progress.Progress`.

            For a checkpoint:

            - ``low_memory``: True reads one decoder layer's weights at a time, with the same result; False
              loads the complete model; None (default) decides by the available memory.
            - ``work_dir``: Folder for what is done: sums over the tokens so far, written once a minute, and
              texts that the model wrote; for ``low_memory``, finished layers and hidden states. An
              interrupted run with the same settings continues from there. If anything was kept,
              the folder stays at the end, and the same call returns the tables again: delete it once they
              are saved. None (default) keeps nothing.
            - ``dtype``: Load the weights as this; None (default) for the checkpoint's own.
            - ``device``: Where to compute (default ``"cpu"``), e.g. ``"cuda"``. Its memory decides whether
              the complete model is loaded.
            - ``trust_remote_code``: Run Python code that comes with the checkpoint (its tokenizer's, or its
              model's if Transformers has no class of its own); default False.
            - ``engine``: ``"transformers"`` (default), or ``"vllm"`` for any model and quantization that vLLM
              serves: its own expert kernels compute the experts' outputs. It measures no sensitivity.
            - ``engine_options``: For vLLM, arguments of its ``LLM``, e.g. ``{"tensor_parallel_size": 2}``.

    Returns:
        The table; for several metrics a dict from a metric's name to its table.

    Raises:
        ConfigError: A setting or metric is wrong or unknown, or the device is not here.
        DataError: The texts are missing, unreadable or too few; or there are none, and the model cannot write
            its own, because it is read layer by layer or ends every text at once.
        UnsupportedModel: The model has no experts modules, or some that cannot be calibrated; for
            ``low_memory``, the checkpoint is quantized or its decoder layers pass on more than hidden states.
        UnsupportedEngine: vLLM's version, an option, or an expert kernel that routes inside itself.
        EngineFailure, EngineError: vLLM did not start, or failed.
        AlreadyApplied: Re-routing is active on the model.
        InputError: The checkpoint is missing, damaged or incomplete, or does not fit the device; or
            ``work_dir`` belongs to another run.
        MissingDependency: The checkpoint needs a package that is not installed.

    Source: SERE (arXiv 2602.07616); docs/method.md section 3.
    """
    config = CalibrationConfig.from_options(metric=metric, **options)
    check_texts(texts, config)
    if isinstance(model, nn.Module):
        config.check_for_loaded_model()
        tables = _loaded(inner_model(model), tokenizer, texts, config)
    else:
        check_device(config.device)
        path = find_checkpoint(model, trust_remote_code=config.trust_remote_code)
        if config.engine == "vllm":
            tables = calibrate_in_vllm(path, tokenizer, texts, config)
        elif _by_layers(path, config):
            tables = _layerwise(path, tokenizer, texts, config)
        else:
            tables = _checkpoint(path, tokenizer, texts, config)
    return tables[metric] if isinstance(metric, str) else tables


def _by_layers(path: Path, config: CalibrationConfig) -> bool:
    """Whether to read a checkpoint layer by layer: as asked, as an interrupted run did, or by the memory."""
    if config.low_memory is not None:
        return config.low_memory
    begun = None if config.work_dir is None else way_of(config.work_dir)
    return begun == LAYERWISE if begun in (LAYERWISE, WHOLE) else not _fits(path, config)


def _fits(path: Path, config: CalibrationConfig) -> bool:
    return fits_memory(path, device=config.device, trust_remote_code=config.trust_remote_code)


def _loaded(
    model: nn.Module, tokenizer: Any, texts: Source | None, config: CalibrationConfig
) -> dict[str, SimilarityTable]:
    """Calibrate a model that the user has loaded."""
    layers = find_experts(model)
    refuse_rerouted(layers)
    tokens = _tokens_of(model, texts, tokenizer, config)
    results = collect_in_memory(model, layers, tokens, config)
    where = where_computed(input_device(model), getattr(model, "dtype", None))
    return make_tables(results, identity_of(model, layers), tokens, config, where)


def _checkpoint(
    path: Path, tokenizer: Any, texts: Source | None, config: CalibrationConfig
) -> dict[str, SimilarityTable]:
    """Load a complete checkpoint and calibrate it; the texts are read first, because they fail sooner."""
    tokenizer = tokenizer or _tokenizer(path, config)
    read = None if texts is None else read_tokens(texts, tokenizer, config)
    dtype = None if config.dtype is None else str(config.dtype)
    run = run_record(
        WHOLE, model_files(path), read, config, dtype=dtype, **where_computed(config.device, config.dtype)
    )
    # Weights are compared at once: there is nothing to go on with.
    with resumable_pass(config.work_dir if config.output_metrics else None, run) as work:
        model = load_model(
            path,
            dtype=config.dtype or "auto",
            bar=config.progress == "always" or (config.progress is True and sys.stderr.isatty()),
            trust_remote_code=config.trust_remote_code,
        )
        model = _on_device(model, path, config)
        layers = find_experts(model)
        tokens = _tokens_of(model, None, tokenizer, config, work) if read is None else read
        results = collect_in_memory(model, layers, tokens, config, work)
        where = where_computed(config.device, model.dtype)
        return make_tables(results, identity_of(model, layers), tokens, config, where)


def _on_device(model: Any, path: Path, config: CalibrationConfig) -> Any:
    try:
        return model.to(config.device)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"device {config.device}: {path} does not fit into its memory; choose another device, or let it "
            "be read layer by layer, with texts (--low-memory, low_memory=True)"
        ) from error


def _layerwise(
    path: Path, tokenizer: Any, texts: Source | None, config: CalibrationConfig
) -> dict[str, SimilarityTable]:
    """Calibrate a checkpoint with one decoder layer's weights in memory at a time.

    Raises:
        DataError: There are no texts, and the model would have to write some.
        UnsupportedModel: The checkpoint is quantized.
    """
    memory = _memory_of(config.device)
    too_large = f"it is too large for {memory} (--whole loads it anyway), and "
    refuse_quantized(path, "" if config.low_memory else too_large)
    if texts is None and config.output_metrics:
        why = "low_memory is set" if config.low_memory else f"the model does not fit into {memory}"
        raise DataError(
            f"texts: expected texts, because {why}: read layer by layer, it cannot write its own; give a "
            "file or a data set (--texts), let vLLM run the model (--engine vllm), or use the metric "
            "'weights', which needs none"
        )
    skeleton = Skeleton(
        path, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    tokens = None if texts is None else read_tokens(texts, tokenizer or _tokenizer(path, config), config)
    where = where_computed(skeleton.device, skeleton.model.dtype)
    run = run_record(
        LAYERWISE, skeleton.reader.fingerprint(), tokens, config,
        model=identity_of(skeleton.model, skeleton.experts).digest, dtype=str(skeleton.model.dtype), **where,
    )  # fmt: skip
    with ExitStack() as stack:
        if config.work_dir is None:
            work = WorkFolder(stack.enter_context(tempfile.TemporaryDirectory()), run)
        else:
            work = stack.enter_context(resumable(config.work_dir, run, total=len(skeleton.layers)))
        in_memory = config.work_dir is None and states_size(skeleton, tokens) <= STATES_BYTES
        results = collect_layerwise(skeleton, tokens, config, work, states_in_memory=in_memory)
        identity = identity_of(skeleton.model, skeleton.experts)
        return make_tables(results, identity, tokens, config, where)


def _memory_of(device: str) -> str:
    """Return whose memory decides whether a complete model is loaded, in words."""
    own = "this machine's memory"
    return own if torch.device(device).type == "cpu" else f"the memory of {device}, or of this machine"


def _tokens_of(
    model: nn.Module,
    texts: Source | None,
    tokenizer: Any,
    config: CalibrationConfig,
    work: PassFolder | None = None,
) -> Tokens | None:
    """Return the calibration tokens: of texts, or written by the model; None if no metric needs any."""
    if not config.output_metrics:
        return None
    if texts is not None:
        return read_tokens(texts, tokenizer, config)
    tokenizer = text_tokenizer(tokenizer)
    return written_tokens(work, tokenizer, config.seq_len, lambda: write_tokens(model, tokenizer, config))


def _tokenizer(path: Path, config: CalibrationConfig) -> Any:
    if not config.output_metrics:
        return None
    return load_tokenizer(path, trust_remote_code=config.trust_remote_code)
