"""The similarity table: one safetensors file, checked when it is read."""

from sere.identity import ModelIdentity
from sere.table.artifact import OWN_TEXTS, SimilarityTable
from sere.table.compare import Comparison, LayerDifference, compare
from sere.table.layers import best_neighbors, describe_unknown, off_diagonal
from sere.table.locate import locate_table
from sere.table.reference_table import import_reference_table
from sere.table.routing_sample import RoutingSample
from sere.table.tiers import DEFAULT_TIER, GAINS_LEFT_OUT, Tier
from sere.table.verify import Check, verify_file, verify_table

__all__ = [
    "DEFAULT_TIER",
    "GAINS_LEFT_OUT",
    "OWN_TEXTS",
    "Check",
    "Comparison",
    "LayerDifference",
    "ModelIdentity",
    "RoutingSample",
    "SimilarityTable",
    "Tier",
    "best_neighbors",
    "compare",
    "describe_unknown",
    "import_reference_table",
    "locate_table",
    "off_diagonal",
    "verify_file",
    "verify_table",
]
