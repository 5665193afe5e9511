"""What both ways of calibrating share: the tokens before, the tables after."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.layerwise.skeleton import Skeleton
from sere.calibrate.packing import Tokens, pack
from sere.calibrate.results import Results
from sere.calibrate.routing import choose_tokens, routing_sample
from sere.calibrate.stability import stability
from sere.errors import AlreadyApplied, ConfigError, name_some
from sere.identity import ModelIdentity
from sere.provenance import provenance, versions
from sere.structure import ExpertsLayer, is_rerouted
from sere.table import OWN_TEXTS, SimilarityTable, describe_unknown
from sere.table.estimated_tiers import estimated_tiers
from sere.texts import Source, load_texts

logger = logging.getLogger("sere")

# Options that only matter if there are tokens, and if there are texts.
_OF_TOKENS = ("max_tokens", "seq_len", "batch_size", "seed", "chunk_bytes", "sensitivity")
_OF_TEXTS = ("field", "split")

# How a run computes the hidden states of all layers.
LAYERWISE, WHOLE, IN_VLLM = "layer by layer", "the whole model", "in vLLM"


def check_texts(texts: Source | None, config: CalibrationConfig) -> None:
    """Refuse texts, or options of texts, that nothing would read.

    Raises:
        ConfigError: They are given with metrics that need no texts, or options of given texts without any.
    """
    if not config.output_metrics:
        unread = [*(["texts"] if texts is not None else []), *config.changed(*_OF_TOKENS, *_OF_TEXTS)]
        reason = f"the metric {config.metrics[0]!r} compares weights and reads no texts"
    else:
        unread = config.changed(*_OF_TEXTS) if texts is None else []
        reason = "without texts, the model writes its own"
    if unread:
        raise ConfigError(f"{name_some(unread)}: {reason}; leave {name_some(unread)} out")


def read_tokens(texts: Source, tokenizer: Any, config: CalibrationConfig) -> Tokens:
    """Read and pack the calibration tokens.

    Raises:
        DataError: The texts are unreadable or too few.
        ConfigError: There is no tokenizer, or something else was given as one.
    """
    tokenizer = text_tokenizer(tokenizer)
    documents = load_texts(
        texts, field=config.field, split=config.split, seed=config.seed, tokenizer=tokenizer
    )
    tokens = pack(documents, tokenizer, max_tokens=config.max_tokens, seq_len=config.seq_len)
    if documents.skipped:
        logger.warning(
            "sere: texts: skipped %d of %d rows, which hold no text (null or blank)",
            documents.skipped, documents.rows,
        )  # fmt: skip
    return replace(tokens, rows=documents.rows, skipped=documents.skipped)


def text_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer; for a processor for texts and images, the one that it holds.

    Raises:
        ConfigError: There is none, or something else was given as one.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(tokenizer, nn.Module) or not callable(tokenizer):
        kind = "None" if tokenizer is None else type(tokenizer).__name__
        raise ConfigError(
            f"tokenizer: expected the model's tokenizer, got {kind}; load it with "
            "AutoTokenizer.from_pretrained"
        )
    return tokenizer


def refuse_rerouted(layers: list[ExpertsLayer]) -> None:
    """Refuse a model whose routing is being changed.

    Raises:
        AlreadyApplied: It is.
    """
    if is_rerouted(layers):
        raise AlreadyApplied(
            "re-routing is active on this model, so its choices would be measured, not the router's; "
            "call remove() on its handle first"
        )


def make_tables(
    results: Results,
    identity: ModelIdentity,
    tokens: Tokens | None,
    config: CalibrationConfig,
    computed: Mapping[str, Any],
) -> dict[str, SimilarityTable]:
    """Return the table of each metric, with estimated tiers; log which experts have no known similarity.

    Args:
        results: What was measured.
        identity: Which model it was.
        tokens: The calibration tokens, if any.
        config: What was asked for.
        computed: Where it was computed and, of a serving engine, with what; JSON-ready.
    """
    how: dict[str, Any] = {"seq_len": config.seq_len, "batch_size": config.batch_size} | dict(computed)
    if tokens is not None and tokens.own:
        how["texts"] = OWN_TEXTS
    if tokens is not None and tokens.skipped:
        how["rows"] = {"read": tokens.rows, "skipped": tokens.skipped}
    sample = None if tokens is None else routing_sample(choose_tokens(tokens, config.seed), results.routing)
    tables: dict[str, SimilarityTable] = {}
    for name in config.metrics:
        used = tokens if name in config.output_metrics else None
        table = SimilarityTable(
            layers=results.similarities[name],
            identity=identity,
            metric=name,
            metric_parameters=config.resolved_parameters(name),
            calibration_tokens=0 if used is None else used.num_tokens,
            data_digest="" if used is None else used.digest,
            seed=None if used is None else config.seed,
            provenance=provenance()
            | ({} if used is None else {"calibration": how | _stability(results, name)}),
            routing=None if used is None else sample,
        )
        tables[name] = table.with_tiers(estimated_tiers(table))
        if unknown := describe_unknown(results.similarities[name], name):
            logger.warning("sere: %s: %s", name, unknown)
    return tables


def _stability(results: Results, metric: str) -> dict[str, Any]:
    """Return the entry of a table's provenance on how stable the choice of neighbors is, if it is known."""
    found = stability(results.similarities[metric], results.halves[metric])
    return {} if found is None else {"stability": found}


def run_record(
    way: str, checkpoint: object, tokens: Tokens | None, config: CalibrationConfig, **further: object
) -> dict[str, Any]:
    """Return everything that decides a run's result, to tell another run from the same one.

    Args:
        way: How it runs the model: LAYERWISE, WHOLE or IN_VLLM.
        checkpoint: What tells the checkpoint's files from others, JSON-ready.
        tokens: The calibration tokens; None for those that the model is to write, or for none.
        config: What was asked for.
        **further: What else decides it in this way.
    """
    return {
        "way": way,
        "checkpoint": checkpoint,
        "metrics": list(config.metrics),
        "metric_parameters": config.parameters,
        "data_digest": None if tokens is None else tokens.digest,
        "chosen": {"max_tokens": config.max_tokens, "seed": config.seed},
        "seq_len": config.seq_len,
        "batch_size": config.batch_size,
        "chunk_bytes": config.chunk_bytes,
        **further,
        "versions": versions(),
    }


def states_size(skeleton: Skeleton, tokens: Tokens | None) -> int:
    """Return a bound on the bytes of the hidden states held at a time."""
    hidden = int(getattr(skeleton.model.config.get_text_config(), "hidden_size", 0))
    # Two layers' states exist at a time; 4 bytes bound every dtype in use.
    return 0 if tokens is None else 2 * 4 * tokens.num_tokens * hidden
