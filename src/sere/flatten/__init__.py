"""Computing experts only for the pairs of a row and an expert that carry weight; it knows no engine."""

from sere.flatten.costs import Costs, costs_of, measure
from sere.flatten.pairs import Pairs, find_pairs, skip_empty_slots, sum_by_row, why_not
from sere.flatten.stats import Flattening, PairCounts

__all__ = [
    "Costs",
    "Flattening",
    "PairCounts",
    "Pairs",
    "costs_of",
    "find_pairs",
    "measure",
    "skip_empty_slots",
    "sum_by_row",
    "why_not",
]
