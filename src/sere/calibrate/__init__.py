"""Texts → token sequences → experts' outputs → similarity table. See docs/architecture.md."""

from sere.calibrate.api import calibrate
from sere.calibrate.config import CalibrationConfig
from sere.calibrate.experts import expert_outputs
from sere.texts import load_texts

__all__ = ["CalibrationConfig", "calibrate", "expert_outputs", "load_texts"]
