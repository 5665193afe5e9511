"""The ``cpu`` backend: loops that numba compiles (docs/method.md section 4)."""

from sere.reroute.backends.cpu.call import Layer, prepare, run

__all__ = ["Layer", "prepare", "run"]
