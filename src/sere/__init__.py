"""Similarity-based expert re-routing for faster batch decoding of Mixture-of-Experts models.

Importing this loads neither Transformers nor vLLM and touches no GPU.
"""

from sere.calibrate import calibrate
from sere.config import RerouteConfig
from sere.errors import SereError
from sere.integrations.transformers import apply
from sere.provenance import installed_version
from sere.reroute import Routing, reroute
from sere.similarity import LayerSimilarity
from sere.table import SimilarityTable

__version__ = installed_version("sere") or "0+unknown"

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
]
