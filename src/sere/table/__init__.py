"""The similarity table: one safetensors file, checked when it is read."""

from sere.identity import ModelIdentity
from sere.table.artifact import SimilarityTable, best_neighbors
from sere.table.compare import Comparison, LayerDifference, compare
from sere.table.published import import_published
from sere.table.unknown import off_diagonal, say_unknown
from sere.table.verify import Check, verify_file, verify_table

__all__ = [
    "Check",
    "Comparison",
    "LayerDifference",
    "ModelIdentity",
    "SimilarityTable",
    "best_neighbors",
    "compare",
    "import_published",
    "off_diagonal",
    "say_unknown",
    "verify_file",
    "verify_table",
]
