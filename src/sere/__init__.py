"""Similarity-based expert re-routing for faster batch decoding of Mixture-of-Experts models.

Importing this loads neither Transformers nor vLLM and touches no GPU.
"""

from sere.startup import watch_start

watch_start()  # before the imports that take seconds

from sere.calibrate import calibrate  # noqa: E402
from sere.config import RerouteConfig  # noqa: E402
from sere.errors import SereError  # noqa: E402
from sere.integrations.transformers import apply  # noqa: E402
from sere.provenance import installed_version  # noqa: E402
from sere.reroute import Routing, reroute  # noqa: E402
from sere.similarity import LayerSimilarity  # noqa: E402
from sere.table import SimilarityTable  # noqa: E402

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
