"""What to expect of a model that nobody has prepared, from its config: engines, calibration, speedup."""

from sere.outlook.calibration import Way, best_way, ways_to_calibrate
from sere.outlook.machine import measure_here
from sere.outlook.model import Unprepared, look_at
from sere.outlook.speedup import ROWS, Step, expect_steps

__all__ = [
    "ROWS",
    "Step",
    "Unprepared",
    "Way",
    "best_way",
    "expect_steps",
    "look_at",
    "measure_here",
    "ways_to_calibrate",
]
