"""Calibrate a model that is in memory: one pass over the tokens, hooks on its experts modules."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.collect import LayerCollector, routing_of
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.float32_products import float32_products
from sere.calibrate.offload import refuse_without_weights
from sere.calibrate.packing import Tokens
from sere.calibrate.pass_folder import PassFolder, sums_file
from sere.calibrate.progress import progress_bar
from sere.calibrate.results import Results
from sere.calibrate.routing import choose_tokens
from sere.calibrate.sensitivity import measure_sensitivity
from sere.calibrate.sums import below, load_tensors, save_sums
from sere.calibrate.vocabulary import check_tokens
from sere.calibrate.weights import refuse_adapted, similarity_of_weights
from sere.errors import UnsupportedModel
from sere.structure import ExpertsLayer
from sere.wrappers import execution_device


def collect_in_memory(
    model: nn.Module,
    layers: Sequence[ExpertsLayer],
    tokens: Tokens | None,
    config: CalibrationConfig,
    work: PassFolder | None = None,
) -> Results:
    """Run the model over the tokens; return every layer's similarities and its routing.

    The model is left as it was found, hooks and modes, whatever happens.

    Args:
        model: The model.
        layers: Its experts modules.
        tokens: The calibration tokens; None if no metric needs any.
        config: What to compute.
        work: Where sums are kept, and those of an interrupted run are; None keeps nothing.

    Raises:
        DataError: A token is beyond the model's embedding.
        ConfigError: Sequences are longer than its learned positions.
        UnsupportedModel: A layer is not the weighted sum of its experts, is never called, or has no weights.
    """
    refuse_without_weights(model, layers, runs=tokens is not None)
    if tokens is not None:
        check_tokens(tokens, model)
    results = Results(config.metrics)
    for name in config.weight_metrics:
        for layer in layers:
            refuse_adapted(model, layer, name)
        for layer in layers:
            results.similarities[name][layer.index] = similarity_of_weights(layer, name)
    if tokens is not None and config.output_metrics:
        collectors, sensitivities = _forward(model, layers, tokens, config, work)
        for collector in collectors:
            index = collector.layer.index
            found = collector.result(tokens.num_tokens)
            known = {
                name: replace(similarity, sensitivity=sensitivities.get(index))
                for name, similarity in found.similarities.items()
            }
            results.add(index, found._replace(similarities=known))
    return results


def _forward(
    model: nn.Module,
    layers: Sequence[ExpertsLayer],
    tokens: Tokens,
    config: CalibrationConfig,
    work: PassFolder | None,
) -> tuple[list[LayerCollector], dict[int, Tensor]]:
    sampled = choose_tokens(tokens, config.seed).positions
    collectors = [LayerCollector(layer, config, sampled, tokens.num_tokens) for layer in layers]
    done = 0 if work is None else _go_on(collectors, work)
    total, device, arguments = tokens.num_tokens, input_device(model), forward_arguments(model)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        stack.enter_context(not_compiled())
        stack.enter_context(float32_products(device))
        _try_token_ids(model, next(tokens.batches(1)).to(device), arguments)
        with ExitStack() as hooks:
            for collector in collectors:
                hooks.enter_context(collecting(collector))
            bar = hooks.enter_context(progress_bar(config.progress, total, "calibrating", done=done))
            for batch in tokens.batches(config.batch_size, done):
                model(input_ids=batch.to(device), **arguments)
                bar.update(batch.numel())
                done += batch.numel()
                if work is not None and work.is_due(done, total):
                    held = {one.layer.index: one.state() for one in collectors}
                    save_sums(sums_file(work.path, done), held)
                    work.finish(done, total)
        sensitivities = measure_sensitivity(model, layers, tokens, config) if config.sensitivity else {}
    return collectors, sensitivities


def _go_on(collectors: Sequence[LayerCollector], work: PassFolder) -> int:
    """Let collectors continue from the sums of an interrupted run; return the tokens that these are of."""
    if work.done:
        sums = load_tensors(sums_file(work.path, work.done))
        for one in collectors:
            one.load_state(below(one.layer.index, sums), execution_device(one.layer.module))
    return work.done


def _try_token_ids(model: nn.Module, ids: Tensor, arguments: dict[str, Any]) -> None:
    """Refuse a model that needs more than token ids, such as a part of a larger model."""
    try:
        model(input_ids=ids, **arguments)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{type(model).__name__}: its forward pass fails on token ids alone ({type(error).__name__}: "
            f"{error}); expected a language model that needs nothing else to be calibrated"
        ) from error


@contextmanager
def collecting(collector: LayerCollector) -> Iterator[None]:
    """Feed a collector from its experts module's calls while the block runs."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        collector.add(*routing_of(args, kwargs, module))

    handle = collector.layer.module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def not_compiled() -> Iterator[None]:
    """Run compiled code eagerly while the block runs: it may have been compiled without hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; restore each module's own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which a model expects its token ids: that of its embeddings."""
    getter = getattr(model, "get_input_embeddings", None)
    embeddings = getter() if callable(getter) else None
    return execution_device(embeddings if isinstance(embeddings, nn.Module) else model)


def forward_arguments(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that the model takes of those that save memory: no cache, only the last logits."""
    parameters = inspect.signature(model.forward).parameters
    arguments = {"use_cache": False, "logits_to_keep": 1}
    return {name: value for name, value in arguments.items() if name in parameters}
