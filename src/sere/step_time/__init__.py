"""How long a decode step takes, from what it reads, what it computes, and two ceilings of a machine."""

from sere.step_time.ceilings import Ceilings, measure
from sere.step_time.known import known_ceilings, remember
from sere.step_time.predict import step_seconds
from sere.step_time.weights import StepWeights

__all__ = ["Ceilings", "StepWeights", "known_ceilings", "measure", "remember", "step_seconds"]
