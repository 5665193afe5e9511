"""How much losing an expert's output costs, from gradients on some of the calibration tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sere.calibrate.config import CalibrationConfig
from sere.calibrate.packing import Tokens
from sere.calibrate.progress import progress_bar
from sere.structure import ExpertsLayer

logger = logging.getLogger("sere")

# So many of the calibration tokens are used, in passes of so few sequences: a backward pass keeps what every
# layer computed.
MOST_TOKENS, SEQUENCES = 16_384, 2
# An expert counts as if so large a share of the mean expert's slots had the layer's mean.
PRIOR = 0.05
# The least sensitivity: a factor of 0 would leave the order of experts to their ids.
LEAST = 1e-6


def measure_sensitivity(
    model: nn.Module, layers: Sequence[ExpertsLayer], tokens: Tokens, config: CalibrationConfig
) -> dict[int, Tensor]:
    """Measure, per expert, the expected divergence per unit of squared gate weight that is lost.

    If a slot of weight w loses its expert's output Y, the output distribution moves by a divergence of about
    ``w² E[(g · Y)²] / 2``, where g is the gradient of the log-likelihood of a token drawn from the model
    itself (the Fisher information). ``g · Y`` is the gradient for the slot's gate weight, so no expert is
    computed more than once.

    Args:
        model: The model; its parameters' ``requires_grad`` and hooks are as before afterwards.
        layers: Its experts modules.
        tokens: The calibration tokens; the first 16,384 are used.
        config: For its seed and progress.

    Returns:
        By decoder-layer index: ``[E]``, float32, on the CPU, in (0, 1], 1 for the most sensitive expert of
        the layer. Experts that no token was routed to have the layer's mean. Empty if the model has no
        gradients for its gate weights, or there is no memory for a backward pass: a warning says so.

    Source: docs/method.md section 3, "Sensitivity".
    """
    sums = {layer.index: _Sums(layer) for layer in layers}
    generator = torch.Generator(device="cpu").manual_seed(config.seed or 0)
    total = min(tokens.num_tokens, MOST_TOKENS)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_frozen(model))
            for one in sums.values():
                stack.enter_context(one.watching())
            bar = stack.enter_context(progress_bar(config.progress, total, "sensitivity"))
            seen = 0
            for batch in tokens.batches(SEQUENCES):
                _one_pass(model, batch, sums, generator)
                bar.update(batch.numel())
                seen += batch.numel()
                if seen >= MOST_TOKENS:
                    break
        return {index: one.finish() for index, one in sums.items()}
    except (RuntimeError, NotImplementedError) as error:  # out of memory is one as well
        reason = " ".join(str(error).split())[:200]
        logger.warning(
            "sere: how sensitive the model is to each expert was not measured (%s: %s); all experts of a "
            "layer count alike when the primary set is filled", type(error).__name__, reason,
        )  # fmt: skip
        return {}


def _one_pass(model: nn.Module, batch: Tensor, sums: dict[int, _Sums], generator: torch.Generator) -> None:
    """Run one batch forward and backward: from tokens that the model draws itself to all gate weights."""
    for one in sums.values():
        one.calls.clear()
    device = next(model.parameters()).device
    output = model(input_ids=batch.to(device), use_cache=False)
    logits = getattr(output, "logits", output[0]).flatten(0, 1).float()
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    loss = torch.nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
    changes = [(one, *call) for one in sums.values() for call in one.calls]
    gradients = torch.autograd.grad(loss, [change for *_, change in changes])
    for (one, ids, weights, _), gradient in zip(changes, gradients, strict=True):
        one.add(ids, weights, gradient)


class _Sums:
    """One layer's sums over slots: of w² times the squared gradient for w, and of w².

    Attributes:
        calls: Ids, gate weights and the leaf that was added to them, of each call in the pass under way.
    """

    def __init__(self, layer: ExpertsLayer) -> None:
        self.layer = layer
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        # The last entry is for ids that are no routed expert's.
        self._cost, self._share = (
            torch.zeros(layer.num_experts + 1, dtype=torch.float64, device="cpu") for _ in range(2)
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add a leaf of zeros to the gate weights of each call while the block runs."""
        handle = self.layer.module.register_forward_pre_hook(self._hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        del module
        values = (*args, *kwargs.values())
        ids, weights = values[1], values[2]
        change = torch.zeros_like(weights).requires_grad_()
        self.calls.append((ids.detach(), weights.detach(), change))
        if len(args) > 2:
            return (*args[:2], weights + change, *args[3:]), kwargs
        name = list(kwargs)[2 - len(args)]
        return args, kwargs | {name: weights + change}

    def add(self, ids: Tensor, weights: Tensor, gradient: Tensor) -> None:
        """Add the slots of one call, ``[..., K]`` each."""
        E = self.layer.num_experts
        flat = ids.flatten().long().cpu()
        flat = torch.where((flat >= 0) & (flat < E), flat, E)
        share = weights.flatten().double().cpu().square()
        cost = share * gradient.flatten().double().cpu().square()
        counts = cost.isfinite() & share.isfinite()
        self._cost.index_add_(0, flat[counts], cost[counts])
        self._share.index_add_(0, flat[counts], share[counts])

    def finish(self) -> Tensor:
        """Return each expert's sensitivity, ``[E]``; 1 for all if nothing came."""
        cost, share = self._cost[:-1], self._share[:-1]
        mean = cost.sum() / share.sum()
        prior = PRIOR * share.mean()
        sensitivity = (cost + mean * prior) / (share + prior)
        if not bool(torch.isfinite(sensitivity).all() & (sensitivity.max() > 0)):
            return torch.ones(len(cost), device="cpu")
        return (sensitivity / sensitivity.max()).clamp(LEAST, 1).float()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no parameter's gradient while the block runs."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
