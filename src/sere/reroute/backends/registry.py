"""Which implementations there are, and which one runs."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from sere.errors import BackendUnavailable, ConfigError, did_you_mean, how_to_install, why_missing
from sere.reroute.batch import USUAL_DTYPES, Routing, StepDtypes, TokenBatch
from sere.reroute.raw_layer import KernelConfig, RawLayer
from sere.warn_once import WarnOnce

warn_once = WarnOnce(logging.getLogger("sere"))


class BackendLayer(Protocol):
    """A layer as a backend prepared it: a named tuple of its tensors, then ``substitutes`` and ``config``."""

    @property
    def keep(self) -> Tensor:
        """``[E]``, bool: experts that are never replaced."""

    @property
    def substitutes(self) -> Tensor | None:
        """``[E, E, 2]``, float32: each pair's factor for a slot's weight, and its similarity; or None."""

    @property
    def config(self) -> KernelConfig:
        """The settings that are not tensors."""

    def __iter__(self) -> Iterator[Any]: ...

    def _asdict(self) -> dict[str, Any]: ...

    def _replace(self, **parts: Any) -> Self: ...


class Implementation(NamedTuple):
    """What a backend's module offers.

    Attributes:
        Layer: What it keeps of a layer.
        prepare: Make that on a device; nothing else of a layer stays.
        run: Route one step that was checked before; it adds to counters in place.
    """

    Layer: Callable[..., BackendLayer]
    prepare: Callable[[RawLayer, torch.device], BackendLayer]
    run: Callable[[TokenBatch, Any, Tensor | None], Routing]


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """One implementation of the operation.

    Attributes:
        name: What ``backend=`` calls it.
        module: Where its ``Layer``, ``prepare`` and ``run`` are; imported at first use.
        devices: Device types it runs on; empty for any.
        needs: An optional package, or None.
        install: The line that installs that package.
        most_experts: The largest E that it takes, or None for any.
        most_slots: The largest K that it takes, or None for any.
        tries: Whether the module's ``why_not(index, dtypes)`` has the last word, after the package is there.
    """

    name: str
    module: str
    devices: tuple[str, ...] = ()
    needs: str | None = None
    install: str = ""
    most_experts: int | None = None
    most_slots: int | None = None
    tries: bool = False

    def why_not(
        self,
        device_type: str,
        E: int = 1,
        index: int | None = None,
        *,
        K: int = 1,
        dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES,
    ) -> str | None:
        """Return why this backend cannot run a layer of E experts on the device, or None if it can.

        Args:
            device_type: Such as ``"cuda"``.
            E: Number of experts.
            index: Which device of this type, or None for the current one.
            K: Slots per row.
            dtypes: Of the steps that it must run.
        """
        reason = self.why_never(device_type, E, K)
        if reason is None and self.tries:
            reason = importlib.import_module(self.module).why_not(index, dtypes)
        return reason

    def why_never(self, device_type: str, E: int = 1, K: int = 1) -> str | None:
        """Return what ``why_not`` can tell without touching the device: None where that has the last word."""
        if self.devices and device_type not in self.devices:
            return f"it needs {' or '.join(self.devices)} tensors, got {device_type} tensors"
        if self.most_experts is not None and self.most_experts < E:
            return f"it takes at most {self.most_experts} experts per layer, this one has {E}"
        if self.most_slots is not None and self.most_slots < K:
            return f"it takes at most {self.most_slots} slots per row, this layer has {K}"
        return None if self.needs is None else why_missing(self.needs, self.install)


BACKENDS: Mapping[str, BackendRecord] = MappingProxyType(
    {
        record.name: record
        for record in (
            BackendRecord("reference", "sere.reroute.backends.reference"),
            BackendRecord("torch", "sere.reroute.backends.torch_ops"),
            BackendRecord(
                "cpu",
                "sere.reroute.backends.cpu",
                ("cpu",),
                needs="numba",
                install=how_to_install("cpu"),
            ),
            BackendRecord(
                "cuda",
                "sere.reroute.backends.cuda",
                ("cuda",),
                needs="cuda.core",
                install=how_to_install("cuda"),
                most_experts=1024,
                most_slots=32,
                tries=True,
            ),
            BackendRecord(
                "triton",
                "sere.reroute.backends.triton",
                ("cuda",),
                needs="triton",
                install="PyTorch for CUDA brings it along, or run: pip install triton",
                most_experts=1024,
                most_slots=32,
                tries=True,
            ),
        )
    }
)

# Which backends "auto" tries, by device type, the fastest first; the torch backend is the last.
FASTEST: Mapping[str, tuple[str, ...]] = MappingProxyType({"cpu": ("cpu",), "cuda": ("cuda", "triton")})


@cache
def select(
    backend: str,
    device_type: str,
    E: int = 1,
    K: int = 1,
    dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES,
) -> str:
    """Return the name of the backend that runs on a device.

    Args:
        backend: A name, or ``"auto"``, which falls back and says why in one log line.
        device_type: Such as ``"cpu"`` or ``"cuda"``.
        E: Number of experts of the layer.
        K: Its slots per row.
        dtypes: Of the steps that it must run.

    Raises:
        ConfigError: No backend has this name.
        BackendUnavailable: The named backend cannot run here; the text says why.
    """
    if backend == "auto":
        return _first_of(
            FASTEST.get(device_type, ()),
            lambda record: record.why_not(device_type, E, K=K, dtypes=dtypes),
            prefix="",
        )
    if backend not in BACKENDS:
        raise ConfigError(f"backend: got {backend!r}{did_you_mean(backend, ['auto', *BACKENDS])}")
    reason = BACKENDS[backend].why_not(device_type, E, K=K, dtypes=dtypes)
    if reason is not None:
        raise BackendUnavailable(f"backend {backend!r} cannot run here: {reason}")
    return backend


def on_device(
    backend: str,
    asked: str,
    device: torch.device,
    E: int = 1,
    K: int = 1,
    dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES,
) -> str:
    """Return the backend for this very device, made ready there: ``select`` knows only the device's type.

    Args:
        backend: What ``select`` returned.
        asked: What it was asked for; ``"auto"`` falls back with one log line.
        device: With its index.
        E: Number of experts of the layer.
        K: Its slots per row.
        dtypes: Of the steps that it must run.

    Raises:
        BackendUnavailable: The named backend cannot run on this device; the text says why.
    """
    record = BACKENDS[backend]
    reason = record.why_not(device.type, E, device.index, K=K, dtypes=dtypes) if record.tries else None
    if reason is None:
        return backend
    if asked != "auto":
        raise BackendUnavailable(f"backend {backend!r} cannot run on {device}: {reason}")
    order = FASTEST[device.type]
    return _first_of(
        order[order.index(backend) :],
        lambda record: record.why_not(device.type, E, device.index, K=K, dtypes=dtypes),
        prefix=f"on {device}, ",
    )


def why_not_fastest(
    backend: str, device: torch.device, E: int, K: int, dtypes: tuple[StepDtypes, ...] = USUAL_DTYPES
) -> str | None:
    """Return why a layer runs with the torch backend though its device has a faster one; None if it has not.

    Args:
        backend: The one that runs.
        device: With its index.
        E: Number of experts of the layer.
        K: Its slots per row.
        dtypes: Of the steps that it must run.
    """
    if backend != "torch" or device.type not in FASTEST:
        return None
    first = FASTEST[device.type][0]
    return BACKENDS[first].why_not(device.type, E, device.index, K=K, dtypes=dtypes)


def _first_of(names: Sequence[str], why_not: Callable[[BackendRecord], str | None], *, prefix: str) -> str:
    """Return the first backend that can run, else the torch backend; one log line says why not the first."""
    reasons: list[str] = []
    for name in (*names, "torch"):
        reason = why_not(BACKENDS[name])
        if reason is None:
            if reasons:
                warn_of_fallback(names[0], prefix + "; ".join(reasons), runs=name)
            return name
        reasons.append(f"not {name} either: {reason}" if reasons else reason)
    raise AssertionError("the torch backend runs on any device")


def warn_of_fallback(backend: str, reason: str, *, runs: str = "torch") -> None:
    """Log that another backend runs than the fastest one; once per process for each reason."""
    text = "sere: re-routing with the %s backend instead of %s: %s"
    warn_once((backend, reason), text, runs, backend, reason)


@cache
def implementation(name: str) -> Implementation:
    """Import a backend."""
    module = importlib.import_module(BACKENDS[name].module)
    return Implementation(module.Layer, module.prepare, module.run)
