"""How well one expert replaces another: metrics as defined, and their streaming accumulators."""

from sere.similarity.accumulator import Accumulator
from sere.similarity.cosine import weights_similarity
from sere.similarity.layer import LayerSimilarity, check_scale, check_similarity
from sere.similarity.metrics import METRICS, Metric, get_metric, make_accumulator, resolve_parameters

__all__ = [
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
