"""All settings of the recipe in one record, readable from and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

Family = Literal["qwen3_moe", "qwen2_moe"]

EMPHASIS = {
    "addition": 0.6, "subtraction": 0.6, "sorting": 0.6, "reversal": 0.7, "modulo": 1.5, "brackets": 1.5,
    "story": 1.5, "shift": 2.5, "ordering": 3.0, "english": 0.6,
}  # fmt: skip
"""How often each task's documents are drawn, relative to 1, once the easy tasks are learned."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The recipe's settings; the defaults are those of abacus, the bundled model.

    Attributes:
        family: Transformers' model type. ``qwen3_moe``: gates that sum to 1, no shared expert. ``qwen2_moe``:
            gates as the softmax gives them, and a shared expert that every token uses.
        seed: Of the data, the initial weights and the upcycling.
        docs_per_task: Training questions drawn of each task.
        english_docs: Training passages drawn.
        hidden_size, layers, heads, kv_heads, head_dim: Shape of the decoder.
        experts, top_k, expert_width: E, K and F of each MoE layer.
        shared_width: Width of the shared expert; 0 for none. The dense FFN is this plus K x F wide.
        step_tokens: Tokens, padding included, of one optimizer step.
        micro_tokens: Tokens, padding included, of one forward and backward pass.
        dense_steps, moe_steps: Optimizer steps of the two phases.
        emphasis: Task (or ``english``) to how often its documents are drawn, relative to 1.
        emphasis_from: Step of the MoE phase from which on ``emphasis`` holds; before, all are drawn alike.
        matrix_lr, other_lr, router_lr: Peak learning rates: Muon for matrices, AdamW for the others.
        query_key_factor: What the matrix rate is multiplied by for queries and keys; without their
            normalization (``qwen2_moe``), 1 saturates the attention.
        moe_lr_factor: What the matrix and other rates are multiplied by in the MoE phase.
        warmup_steps: Steps of linear warm-up in each phase.
        decay_from: Share of the MoE phase after which the rate falls linearly to ``last_rate``.
        last_rate: Factor on the peak rates at the end of the MoE phase.
        exchange_steps: Optimizer steps of the third phase, in which siblings stand in for each other.
        exchange_rows: Share of its tokens that have their lighter slots exchanged.
        exchange_rate: Factor on the MoE phase's rates at its start; falls linearly to zero.
        balance: Coefficient of the load balancing loss.
        fresh_rows: Share of each expert's hidden units that upcycling draws again.
        noise: Standard deviation of the noise on the kept units, relative to the weights' own.
        router_std, router_jitter: Deviation of the logit that a copy's K slices share, and of
            what tells them apart.
        save_every_s: Seconds between checkpoints.
        threads: Threads of torch.
    """

    family: Family = "qwen3_moe"
    seed: int = 20
    docs_per_task: int = 30_000
    english_docs: int = 8_000
    hidden_size: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 96
    top_k: int = 8
    expert_width: int = 32
    shared_width: int = 0
    step_tokens: int = 4096
    micro_tokens: int = 2048
    dense_steps: int = 480
    moe_steps: int = 1960
    exchange_steps: int = 700
    exchange_rows: float = 0.35
    exchange_rate: float = 0.6
    emphasis: dict[str, float] = field(default_factory=lambda: dict(EMPHASIS))
    emphasis_from: int = 1006
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    router_lr: float = 3e-4
    query_key_factor: float = 1.0
    moe_lr_factor: float = 0.7
    warmup_steps: int = 40
    decay_from: float = 1150 / 1960
    last_rate: float = 340 / 1150
    balance: float = 1e-2
    fresh_rows: float = 0.5
    noise: float = 0.1
    router_std: float = 0.5
    router_jitter: float = 0.05
    save_every_s: float = 180.0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ValueError(f"family: expected one of {get_args(Family)}, got {self.family!r}")
        if bool(self.shared_width) != (self.family == "qwen2_moe"):
            raise ValueError(f"shared_width: {self.family} cannot have {self.shared_width}")

    @property
    def dense_width(self) -> int:
        """Width of the dense FFN: the shared expert and K slices of F."""
        return self.shared_width + self.top_k * self.expert_width

    def write(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read settings from JSON; keys that are missing keep their default.

        Raises:
            ValueError: A key is unknown.
        """
        given: dict[str, Any] = json.loads(path.read_text())
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{path}: unknown settings {unknown}; valid are {sorted(known)}")
        return cls(**given)


SMOKE = Settings(
    docs_per_task=60, english_docs=20, hidden_size=64, layers=2, heads=2, kv_heads=1,
    experts=8, top_k=4, step_tokens=1024, micro_tokens=512, dense_steps=6, moe_steps=6,
    exchange_steps=6, warmup_steps=2,
)  # fmt: skip
"""The whole recipe in seconds, to see that it runs; the model learns nothing."""
