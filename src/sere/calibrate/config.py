"""What one calibration was asked to do, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sere.errors import ConfigError

if TYPE_CHECKING:
    import os

    import torch

# 400 sequences of 128 tokens, as in the paper (SERE, arXiv 2602.07616).
MAX_TOKENS = 51_200
SEQ_LEN = 128
CHUNK_BYTES = 256 * 2**20

Progress = bool | Literal["always"]


class Options(TypedDict, total=False):
    """Keyword arguments that both ways of calibrating take; see `sere.calibrate.calibrate`."""

    max_tokens: int
    seq_len: int
    batch_size: int
    seed: int | None
    progress: Progress
    metric_parameters: Mapping[str, Any] | None
    chunk_bytes: int
    field: str
    split: str
    work_dir: str | os.PathLike[str] | None
    trust_remote_code: bool


class CalibrateOptions(Options, total=False):
    """Keyword arguments of `sere.calibrate.calibrate`."""

    low_memory: bool | None


class CheckpointOptions(Options, total=False):
    """Keyword arguments of `sere.calibrate.calibrate_checkpoint`."""

    tokenizer: Any
    states_bytes: int
    dtype: torch.dtype | None
    device: str


@dataclass(frozen=True)
class CalibrationConfig:
    """The settings of one calibration run.

    Attributes:
        metrics: Names of the metrics, each once.
        parameters: Parameters of a metric by its name; absent for none.
        max_tokens: At most this many tokens of the texts are used.
        seq_len: Tokens per sequence.
        batch_size: Sequences per forward pass.
        seed: Seed of the documents' order; None keeps their order.
        chunk_bytes: Bound on the experts' outputs held at a time, in bytes of float32.
        progress: True shows a bar on a terminal, "always" anywhere, False nowhere.

    Raises:
        ConfigError: A value is out of range; the text names it.
    """

    metrics: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]
    max_tokens: int = MAX_TOKENS
    seq_len: int = SEQ_LEN
    batch_size: int = 8
    seed: int | None = 0
    chunk_bytes: int = CHUNK_BYTES
    progress: Progress = True

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError("metric: expected at least one name, got none")
        if len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"metric: each at most once, got {', '.join(self.metrics)}")
        for name in ("max_tokens", "seq_len", "batch_size", "chunk_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.max_tokens < self.seq_len:
            raise ConfigError(
                f"max_tokens: expected at least one sequence of seq_len={self.seq_len}, got {self.max_tokens}"
            )
        if unasked := set(self.parameters) - set(self.metrics):
            raise ConfigError(
                f"metric_parameters: {', '.join(sorted(unasked))} is not among the metrics asked for "
                f"({', '.join(self.metrics)})"
            )

    @property
    def needs_tokens(self) -> bool:
        """Whether any metric looks at the experts' outputs; `weights` alone does not."""
        return any(name != "weights" for name in self.metrics)


def metric_settings(
    metric: str | Iterable[str], parameters: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], dict[str, Mapping[str, Any]]]:
    """Bring the two forms of asking, one metric or several, into one.

    Args:
        metric: A name, or several.
        parameters: For one metric its parameters; for several, a mapping from a metric's name to its.

    Returns:
        The names, and the parameters by name.

    Raises:
        ConfigError: For several metrics, the parameters of one are no mapping.
    """
    if isinstance(metric, str):
        return (metric,), ({metric: dict(parameters)} if parameters else {})
    for name, value in (parameters or {}).items():
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"metric_parameters: for several metrics expected a mapping from a metric's name to its "
                f"parameters, got {name}={value!r}"
            )
    return tuple(metric), {name: dict(value) for name, value in (parameters or {}).items()}
