"""Similarity-based expert re-routing for faster batch decoding of Mixture-of-Experts models.

Importing this loads no PyTorch, no Transformers and no vLLM: each name below is loaded when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sere.startup import watch_start

watch_start()  # before the imports that take seconds

if TYPE_CHECKING:
    from sere.calibrate import calibrate
    from sere.config import RerouteConfig
    from sere.errors import SereError
    from sere.integrations.transformers import apply
    from sere.reroute import Routing, reroute
    from sere.similarity import LayerSimilarity
    from sere.table import SimilarityTable
    from sere.tune import tune

    __version__: str

__all__ = [
    "LayerSimilarity",
    "RerouteConfig",
    "Routing",
    "SereError",
    "SimilarityTable",
    "__version__",
    "apply",
    "calibrate",
    "reroute",
    "tune",
]

# Where each lazy name is defined.
_HOMES = {
    "LayerSimilarity": "sere.similarity",
    "RerouteConfig": "sere.config",
    "Routing": "sere.reroute",
    "SereError": "sere.errors",
    "SimilarityTable": "sere.table",
    "apply": "sere.integrations.transformers",
    "calibrate": "sere.calibrate",
    "reroute": "sere.reroute",
    "tune": "sere.tune",
}


class _Package(ModuleType):
    """Keeps ``sere.reroute``, ``sere.calibrate`` and ``sere.tune`` functions: packages have these names, too.

    Importing such a package sets it as an attribute of this one, which would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from sere.provenance import installed_version

        value: Any = installed_version("sere") or "0+unknown"
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
