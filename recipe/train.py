"""Train the bundled model: ``python -m recipe.train --out build/abacus [--resume] [--smoke]``.

Dense phase, upcycling, MoE phase; a checkpoint every few minutes; progress as JSON lines in ``log.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recipe import data, models, optimizer, tokenizer
from recipe.experts import use_grouped_experts
from recipe.settings import SMOKE, Settings

LOG_EVERY = 20
PHASES = ("dense", "moe", "exchange")


@dataclass
class Balance:
    """Load balancing over whole batches: the loads are a running mean over steps, not one micro-batch's.

    Source: global-batch load balancing (arXiv 2501.11873).
    """

    routers: list[nn.Module]
    top_k: int
    load: list[Tensor] = field(default_factory=list)
    terms: list[Tensor] = field(default_factory=list)
    hooks: list[RemovableHandle] = field(default_factory=list)
    top_gate: float = 0.0

    def watch(self) -> None:
        """Collect each router's term of the loss on every forward."""
        for layer, router in enumerate(self.routers):
            self.load.append(torch.ones(router.weight.shape[0]))  # type: ignore[arg-type,index]
            self.hooks.append(router.register_forward_hook(self._hook(layer)))

    def _hook(self, layer: int) -> Callable[..., None]:
        def collect(_module: nn.Module, _args: Any, out: tuple[Tensor, Tensor, Tensor]) -> None:
            logits, gates, ids = out
            if not torch.is_grad_enabled():
                return
            count = logits.shape[-1]
            now = torch.bincount(ids.flatten(), minlength=count) * (count / ids.numel())
            self.load[layer].lerp_(now, 0.05)
            self.terms.append((self.load[layer].clone() * logits.softmax(-1).mean(0)).sum())
            self.top_gate += 0.01 * (gates.detach().amax(-1).mean().item() - self.top_gate)

        return collect

    def take(self) -> Tensor | float:
        """Return the mean term since the last call: 1 when the loads are even."""
        total = torch.stack(self.terms).mean() if self.terms else 0.0
        self.terms.clear()
        return total


def rate(settings: Settings, phase: str, step: int) -> float:
    """Return the factor on the peak rates: warm-up, flat, and in the MoE phase a linear fall to zero."""
    factor = min(1.0, (step + 1) / settings.warmup_steps)
    if phase == "moe":
        fall = settings.decay_from * settings.moe_steps
        left = max(0.0, (settings.moe_steps - step) / (settings.moe_steps - fall))
        factor = min(factor, settings.last_rate + (1 - settings.last_rate) * left)
    if phase == "exchange":
        factor *= settings.exchange_rate * (1 - step / settings.exchange_steps)
    return factor


class Run:
    """One phase of the training, resumable."""

    def __init__(
        self, phase: str, model: nn.Module, documents: data.Documents, settings: Settings, out: Path
    ) -> None:
        self.phase, self.model, self.documents = phase, model, documents
        self.settings, self.out = settings, out
        self.steps = getattr(settings, f"{phase}_steps")
        self.optimizers = optimizer.build(
            model, settings, 1.0 if phase == "dense" else settings.moe_lr_factor
        )
        exchange = settings.exchange_rows if phase == "exchange" else 0.0
        self.balance = Balance(use_grouped_experts(model, exchange), settings.top_k)
        self.balance.watch()
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    @property
    def checkpoint(self) -> Path:
        """The file this phase is saved to."""
        return self.out / f"{self.phase}.pt"

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the last one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [opt.state_dict() for opt in self.optimizers],
            "load": self.balance.load,
            "progress": (self.step, self.tokens, self.seconds),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for opt, saved in zip(self.optimizers, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        for load, saved in zip(self.balance.load, state["load"], strict=True):
            load.copy_(saved)
        self.step, self.tokens, self.seconds = state["progress"]
        path = self.out / "log.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.write_text("".join(json.dumps(record) + "\n" for record in records if not self._undone(record)))

    def _undone(self, record: dict[str, Any]) -> bool:
        """Return whether a log record is of a step after the checkpoint, which will be repeated."""
        return bool(record["phase"] == self.phase and record["step"] > self.step)

    def follow(self, before: Run) -> None:
        """Take over the optimizers' state and the loads of the phase before; the model is the same."""
        for mine, theirs in zip(self.optimizers, before.optimizers, strict=True):
            mine.load_state_dict(theirs.state_dict())
        self.balance.load = before.balance.load
        for hook in before.balance.hooks:
            hook.remove()

    def _train_step(self, batches: list[data.Batch]) -> float:
        weight = sum(int((batch.targets >= 0).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            logits = self.model(input_ids=batch.inputs, use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), batch.targets.flatten(), reduction="sum", ignore_index=-100
            )
            loss = loss / weight
            total += loss.item()
            total_loss: Tensor = loss + self.settings.balance * self.balance.take() / len(batches)
            total_loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = rate(self.settings, self.phase, self.step)
        for opt in self.optimizers:
            for group in opt.param_groups:
                group["lr"] = factor * group["peak"]
            opt.step()
            opt.zero_grad()
        return total

    def train(self) -> None:
        """Train to the last step, with checkpoints and a log."""
        self.model.train()
        losses: list[float] = []
        started = saved = time.monotonic()
        before, tokens_before = self.seconds, self.tokens
        # The phases see different batches: each phase's are numbered from another million on.
        origin = 10**6 * PHASES.index(self.phase)
        stressed = 10**6 + self.settings.emphasis_from if origin else None
        stream = data.steps(self.documents, self.settings, origin + self.step, stressed)
        for batches in islice(stream, self.steps - self.step):
            losses.append(self._train_step(batches))
            self.step += 1
            self.tokens += sum(int(batch.real.sum()) for batch in batches)
            self.seconds = before + time.monotonic() - started
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                rate_now = (self.tokens - tokens_before) / (time.monotonic() - started)
                self._log(sum(losses) / len(losses), rate_now)
                losses.clear()
            if time.monotonic() - saved > self.settings.save_every_s:
                self.save()
                saved = time.monotonic()
        self.save()

    def _log(self, loss: float, tokens_per_s: float) -> None:
        spread = [float(load.max()) for load in self.balance.load]
        record = {
            "phase": self.phase,
            "step": self.step,
            "loss": round(loss, 4),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_s": round(tokens_per_s),
            "most_loaded": round(max(spread), 2) if spread else None,
            "top_gate": round(self.balance.top_gate, 3),
        }
        line = json.dumps(record)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as log:
            log.write(line + "\n")


def main() -> None:
    """Run the phases that are not yet done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--settings", type=Path, help="JSON file; missing keys keep their default")
    parser.add_argument("--phase", choices=(*PHASES, "all"), default="all")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--smoke", action="store_true", help="in seconds, to see that the recipe runs")
    args = parser.parse_args()
    settings = SMOKE if args.smoke else Settings.read(args.settings) if args.settings else Settings()
    args.out.mkdir(parents=True, exist_ok=True)
    settings.write(args.out / "settings.json")
    torch.set_num_threads(settings.threads)
    documents = data.load_documents(settings, tokenizer.build())
    runs = _runs(settings, documents, args.out)
    for phase, run in runs:
        done = args.phase not in ("all", phase)
        if (args.resume or done) and run.checkpoint.exists():
            run.restore()
        if not done:
            run.train()
        if phase == args.phase:
            break


def _runs(settings: Settings, documents: data.Documents, out: Path) -> Iterator[tuple[str, Run]]:
    """Yield each phase's run when the one before is done; a phase starts from where that one ended."""
    characters = tokenizer.build()
    dense = models.dense_model(settings, characters)
    yield "dense", Run("dense", dense, documents, settings, out)
    moe = models.moe_model(settings, characters)
    models.upcycle(dense, moe, settings, next(data.steps(documents, settings)))
    before = Run("moe", moe, documents, settings, out)
    yield "moe", before
    run = Run("exchange", moe, documents, settings, out)
    run.follow(before)
    yield "exchange", run


if __name__ == "__main__":
    main()
