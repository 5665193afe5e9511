"""How well one expert replaces another: one file per metric, with its definition and what computes it."""

from sere.similarity.accumulator import Accumulator
from sere.similarity.layer import LayerSimilarity, check_scale, check_similarity
from sere.similarity.metric import Metric
from sere.similarity.metrics import DEFAULT_METRIC, METRICS, get_metric, make_accumulator, resolve_parameters
from sere.similarity.weights import weights_similarity

__all__ = [
    "DEFAULT_METRIC",
    "METRICS",
    "Accumulator",
    "LayerSimilarity",
    "Metric",
    "check_scale",
    "check_similarity",
    "get_metric",
    "make_accumulator",
    "resolve_parameters",
    "weights_similarity",
]
