"""What one calibration is asked to do: all keyword arguments of `sere.calibrate`, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypedDict

import torch

from sere.errors import ConfigError, did_you_mean, name_some
from sere.progress import Progress
from sere.similarity import DEFAULT_METRIC, get_metric

# The first is the default.
ENGINES = ("transformers", "vllm")

# Options that only apply to a checkpoint that is yet to be loaded.
_OF_CHECKPOINTS = (
    "low_memory", "work_dir", "dtype", "device", "trust_remote_code", "engine", "engine_options",
)  # fmt: skip

ShowProgress = bool | Literal["always"] | Progress


class CalibrationOptions(TypedDict, total=False):
    """The fields of `CalibrationConfig` other than ``metric``, for the signature of `sere.calibrate`."""

    metric_parameters: Mapping[str, Any] | None
    max_tokens: int
    seq_len: int
    batch_size: int
    seed: int | None
    field: str
    split: str
    chunk_bytes: int
    sensitivity: bool
    progress: ShowProgress
    low_memory: bool | None
    work_dir: str | os.PathLike[str] | None
    dtype: torch.dtype | None
    device: str
    trust_remote_code: bool
    engine: str
    engine_options: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How to calibrate; `sere.calibrate` describes each field.

    Raises:
        ConfigError: A value is wrong, or a metric or a parameter is unknown; the text names it.
    """

    metric: str | Sequence[str] = DEFAULT_METRIC
    metric_parameters: Mapping[str, Any] | None = None
    # 400 sequences of 128 tokens, as in the paper (SERE, arXiv 2602.07616).
    max_tokens: int = 51_200
    seq_len: int = 128
    batch_size: int = 8
    seed: int | None = 0
    field: str = "text"
    split: str = "train"
    chunk_bytes: int = 256 * 2**20
    sensitivity: bool = True
    progress: ShowProgress = True
    low_memory: bool | None = None
    work_dir: str | os.PathLike[str] | None = None
    dtype: torch.dtype | None = None
    device: str = "cpu"
    trust_remote_code: bool = False
    engine: str = "transformers"
    engine_options: Mapping[str, Any] | None = None

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build from keyword arguments as a user wrote them.

        Raises:
            TypeError: A name is unknown; the text names the nearest.
            ConfigError: A value is wrong.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                raise TypeError(f"calibrate: unexpected argument {name!r}{did_you_mean(name, names)}")
        return cls(**options)

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ConfigError("metric: expected at least one name, got none")
        if len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"metric: expected each name once, got {name_some(self.metrics)}")
        for name in ("max_tokens", "seq_len", "batch_size", "chunk_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}")
        if self.max_tokens < self.seq_len:
            raise ConfigError(
                f"max_tokens: expected at least one sequence of seq_len={self.seq_len}, got {self.max_tokens}"
            )
        self._check_engine()
        if unasked := set(self.parameters) - set(self.metrics):
            raise ConfigError(
                f"metric_parameters: expected names among the metrics ({name_some(self.metrics)}), "
                f"got {name_some(sorted(unasked))}"
            )
        for name in self.metrics:
            self.resolved_parameters(name)

    def _check_engine(self) -> None:
        """Refuse an unknown engine, and options that it would not read."""
        if self.engine not in ENGINES:
            nearest = did_you_mean(self.engine, ENGINES)
            raise ConfigError(f"engine: expected {' or '.join(ENGINES)}, got {self.engine!r}{nearest}")
        if self.engine == ENGINES[0]:
            if self.engine_options is not None:
                raise ConfigError(
                    "engine_options: only apply to engine='vllm'; leave them out, or choose that engine"
                )
            return
        if unread := self.changed("low_memory", "device"):
            raise ConfigError(
                f"{name_some(unread)}: only applies to Transformers, got engine={self.engine!r}, which "
                f"places the model itself; leave {name_some(unread)} out (engine_options may say more)"
            )
        if self.weight_metrics:
            raise ConfigError(
                f"metric: {name_some(self.weight_metrics)} compares the checkpoint's weights, which needs no "
                "engine; leave engine out, or use a metric of outputs, such as 'projection'"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The metrics' parameters, as given, by metric name; no entry for a metric without any.

        Raises:
            ConfigError: For several metrics, an entry is not a mapping.
        """
        given = self.metric_parameters or {}
        if isinstance(self.metric, str):
            return {self.metric: dict(given)} if given else {}
        for name, value in given.items():
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"metric_parameters: for several metrics expected a mapping from a metric's name to its "
                    f"parameters, got {name}={value!r}"
                )
        return {name: dict(value) for name, value in given.items()}

    def resolved_parameters(self, metric: str) -> dict[str, Any]:
        """Return all parameters of one of the metrics, defaults included.

        Raises:
            ConfigError: The metric or a parameter is unknown, or a value is wrong.
        """
        return get_metric(metric).resolve(self.parameters.get(metric, {}))

    @property
    def output_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that are computed from the experts' outputs on the calibration tokens."""
        return tuple(name for name in self.metrics if get_metric(name).accumulator is not None)

    @property
    def weight_metrics(self) -> tuple[str, ...]:
        """The names of the metrics that are computed from the experts' weights, without tokens."""
        return tuple(name for name in self.metrics if get_metric(name).of_weights is not None)

    def changed(self, *names: str) -> list[str]:
        """Return which of these fields do not have their defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def check_for_loaded_model(self) -> None:
        """Refuse options that only apply to a checkpoint that is yet to be loaded.

        Raises:
            ConfigError: One of them is set; the text names it.
        """
        for name in self.changed(*_OF_CHECKPOINTS):
            if getattr(self, name) is not False:
                raise ConfigError(
                    f"{name}: only applies to a checkpoint, got a model that is already in memory; leave "
                    f"{name} out, or give the checkpoint's path instead of the model"
                )
