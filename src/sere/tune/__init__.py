"""From the loss that a person accepts to the fewest experts: simulate, measure, allocate, verify."""

from sere.tune.api import tune
from sere.tune.run import Tuned

__all__ = ["Tuned", "tune"]
