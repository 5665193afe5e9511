"""The two ways in: a model in memory, or a checkpoint layer by layer."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from torch import nn

from sere.calibrate.assemble import (
    Tables,
    make_tables,
    read_tokens,
    refuse_rerouted,
    run_record,
    states_size,
)
from sere.calibrate.config import (
    CHUNK_BYTES,
    MAX_TOKENS,
    SEQ_LEN,
    CalibrateOptions,
    CalibrationConfig,
    CheckpointOptions,
    Progress,
    metric_settings,
)
from sere.calibrate.in_memory import collect_in_memory
from sere.calibrate.layerwise.by_layers import collect_layerwise
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.layerwise.work_folder import WorkFolder, resumable
from sere.calibrate.memory import fits_memory
from sere.checkpoints import find_checkpoint, load_model, load_tokenizer
from sere.errors import ConfigError
from sere.similarity import resolve_parameters
from sere.structure import find_experts
from sere.table import SimilarityTable
from sere.texts import Source
from sere.wrappers import inner_model

if TYPE_CHECKING:
    import torch

# Hidden states of the calibration tokens stay in memory up to this many bytes, beyond it they go to disk.
STATES_BYTES = 2**29


@overload
def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = ...,
    texts: Source | None = ...,
    *,
    metric: str = ...,
    **options: Unpack[CalibrateOptions],
) -> SimilarityTable: ...


@overload
def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = ...,
    texts: Source | None = ...,
    *,
    metric: list[str] | tuple[str, ...],
    **options: Unpack[CalibrateOptions],
) -> dict[str, SimilarityTable]: ...


def calibrate(
    model: nn.Module | str | os.PathLike[str],
    tokenizer: Any = None,
    texts: Source | None = None,
    *,
    metric: str | list[str] | tuple[str, ...] = "frobenius",
    max_tokens: int = MAX_TOKENS,
    seq_len: int = SEQ_LEN,
    batch_size: int = 8,
    seed: int | None = 0,
    progress: Progress = True,
    metric_parameters: Mapping[str, Any] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    field: str = "text",
    split: str = "train",
    low_memory: bool | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> Tables:
    """Measure how well the experts of each layer replace each other.

    Args:
        model: A Transformers model, left as it is found, also within a wrapper such as a PEFT model; or a
            checkpoint: its path, its hub name, or ``"bundled"``.
        tokenizer: The model's tokenizer; None takes the checkpoint's. Not needed where ``metric`` is
            ``"weights"``.
        texts: A ``.txt``, ``.jsonl``, ``.json`` or ``.parquet`` file, a Hugging Face data set's name, or the
            documents themselves: a list (or any iterable) of texts, rows or conversations; see
            `sere.texts.load_texts`. Conversations are written by the tokenizer's chat template.
        metric: A name of `sere.similarity.METRICS`, or several: all are computed in one pass.
        max_tokens: At most this many tokens are used.
        seq_len: Tokens per sequence; documents are packed without padding.
        batch_size: Sequences per forward pass.
        seed: Seed of the documents' order; None keeps their order.
        progress: True shows a bar on a terminal, "always" anywhere, False nowhere.
        metric_parameters: Parameters of the metric; for several, a mapping from a metric's name to its.
        chunk_bytes: Bound on the experts' outputs held at a time, in bytes.
        field: Field or column of the texts; without a ``text``, a row's ``messages`` or ``conversations``.
        split: Part of a Hugging Face data set.
        low_memory: For a checkpoint: True goes layer by layer (see `calibrate_checkpoint`), False loads it
            whole, None decides by the memory that is available.
        work_dir: See `calibrate_checkpoint`; only for the layer-by-layer way.
        trust_remote_code: For a checkpoint: run Python code that comes with it, its tokenizer's, or its
            model's where Transformers has no class of its own. Never asked for, never run otherwise.

    Returns:
        The table; for several metrics a dict from a metric's name to its table.

    Raises:
        ConfigError: A setting or metric is wrong or unknown.
        DataError: The texts are missing, unreadable or too few.
        UnsupportedModel: The model has no experts modules, or ones that cannot be calibrated.
        AlreadyApplied: Re-routing is active on the model.
        InputError: The checkpoint is missing, damaged or incomplete.
        MissingDependency: The checkpoint needs a package that is not installed.

    Source: SERE (arXiv 2602.07616); docs/method.md section 3.
    """
    names, parameters = metric_settings(metric, metric_parameters)
    settings = _settings(names, parameters, max_tokens, seq_len, batch_size, seed, chunk_bytes, progress)
    if not isinstance(model, nn.Module):
        path = find_checkpoint(model, trust_remote_code=trust_remote_code)
        if low_memory or (low_memory is None and not fits_memory(path)):
            options: dict[str, Any] = {"field": field, "split": split, "work_dir": work_dir}
            options |= {"trust_remote_code": trust_remote_code}
            return _by_layers(path, tokenizer, texts, settings, isinstance(metric, str), **options)
        tokenizer = tokenizer or _tokenizer(path, settings, trust_remote_code)
        tokens = read_tokens(texts, tokenizer, settings, field, split)
        shown = progress == "always" or (progress and sys.stderr.isatty())
        model = load_model(path, bar=shown, trust_remote_code=trust_remote_code)
        layers = find_experts(model)
    elif low_memory or work_dir is not None:
        raise ConfigError(
            "low_memory and work_dir: expected a checkpoint's path, got a model that is in memory already"
        )
    else:
        model = inner_model(model)
        layers = find_experts(model)
        refuse_rerouted(layers)
        tokens = read_tokens(texts, tokenizer, settings, field, split)
    results = collect_in_memory(model, layers, tokens, settings)
    return make_tables(results, model, layers, tokens, settings, single=isinstance(metric, str))


@overload
def calibrate_checkpoint(
    path: str | os.PathLike[str],
    texts: Source | None = ...,
    *,
    metric: str = ...,
    **options: Unpack[CheckpointOptions],
) -> SimilarityTable: ...


@overload
def calibrate_checkpoint(
    path: str | os.PathLike[str],
    texts: Source | None = ...,
    *,
    metric: list[str] | tuple[str, ...],
    **options: Unpack[CheckpointOptions],
) -> dict[str, SimilarityTable]: ...


def calibrate_checkpoint(
    path: str | os.PathLike[str],
    texts: Source | None = None,
    *,
    tokenizer: Any = None,
    metric: str | list[str] | tuple[str, ...] = "frobenius",
    max_tokens: int = MAX_TOKENS,
    seq_len: int = SEQ_LEN,
    batch_size: int = 8,
    seed: int | None = 0,
    progress: Progress = True,
    metric_parameters: Mapping[str, Any] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    field: str = "text",
    split: str = "train",
    work_dir: str | os.PathLike[str] | None = None,
    states_bytes: int = STATES_BYTES,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Tables:
    """Calibrate a checkpoint with one decoder layer's weights in memory at a time.

    The result equals `calibrate`'s on the whole model.

    Args:
        path: A folder with safetensors weights, a hub name, or ``"bundled"``.
        texts: As for `calibrate`, like all arguments not named here.
        tokenizer: None takes the checkpoint's.
        metric: A metric's name, or several.
        max_tokens: At most this many tokens are used.
        seq_len: Tokens per sequence.
        batch_size: Sequences per forward pass.
        seed: Seed of the documents' order.
        progress: Whether and where to show a bar.
        metric_parameters: Parameters of the metric or metrics.
        chunk_bytes: Bound on the experts' outputs held at a time, in bytes.
        field: Field or column of the texts.
        split: Part of a Hugging Face data set.
        work_dir: Where finished layers and the hidden states go. An interrupted run with the same settings
            continues after the last finished layer; the folder is deleted at the end. None: a temporary
            folder, nothing to resume.
        states_bytes: Without ``work_dir``, hidden states up to this many bytes stay in memory.
        dtype: Load the weights as this; None for the checkpoint's own.
        device: Where to compute, e.g. ``"cuda"``.
        trust_remote_code: As for `calibrate`.

    Returns:
        The table; for several metrics a dict from a metric's name to its table.

    Raises:
        ConfigError: A setting or metric is wrong or unknown.
        DataError: The texts are missing, unreadable or too few.
        UnsupportedModel: As for `calibrate`; or the checkpoint is quantized, or its decoder layers hand
            more to each other than hidden states.
        InputError: The checkpoint is missing, damaged or incomplete, or ``work_dir`` belongs to another run.
    """
    names, parameters = metric_settings(metric, metric_parameters)
    settings = _settings(names, parameters, max_tokens, seq_len, batch_size, seed, chunk_bytes, progress)
    options: dict[str, Any] = {"work_dir": work_dir, "states_bytes": states_bytes, "dtype": dtype}
    options |= {"device": device, "field": field, "split": split, "trust_remote_code": trust_remote_code}
    folder = find_checkpoint(path, trust_remote_code=trust_remote_code)
    return _by_layers(folder, tokenizer, texts, settings, isinstance(metric, str), **options)


def _by_layers(
    path: Path,
    tokenizer: Any,
    texts: Source | None,
    settings: CalibrationConfig,
    single: bool,
    *,
    field: str,
    split: str,
    work_dir: str | os.PathLike[str] | None,
    states_bytes: int = STATES_BYTES,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Tables:
    skeleton = Skeleton(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    tokenizer = tokenizer or _tokenizer(path, settings, trust_remote_code)
    tokens = read_tokens(texts, tokenizer, settings, field, split)
    run = run_record(skeleton, tokens, settings)
    with ExitStack() as stack:
        if work_dir is None:
            work = WorkFolder(stack.enter_context(tempfile.TemporaryDirectory()), run)
        else:
            work = stack.enter_context(resumable(work_dir, run, total=len(skeleton.layers)))
        in_memory = work_dir is None and states_size(skeleton, tokens) <= states_bytes
        results = collect_layerwise(skeleton, tokens, settings, work, states_in_memory=in_memory)
        return make_tables(results, skeleton.model, skeleton.experts, tokens, settings, single=single)


def _tokenizer(path: Path, settings: CalibrationConfig, trusted: bool) -> Any:
    return load_tokenizer(path, trust_remote_code=trusted) if settings.needs_tokens else None


def _settings(
    metrics: tuple[str, ...],
    parameters: Mapping[str, Mapping[str, Any]],
    max_tokens: int,
    seq_len: int,
    batch_size: int,
    seed: int | None,
    chunk_bytes: int,
    progress: Progress,
) -> CalibrationConfig:
    settings = CalibrationConfig(
        metrics, parameters, max_tokens, seq_len, batch_size, seed, chunk_bytes, progress
    )  # fmt: skip
    for name in metrics:
        resolve_parameters(name, parameters.get(name, {}))
    return settings
