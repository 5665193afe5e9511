"""Texts → token sequences → experts' outputs → similarity table. See docs/architecture.md."""

from sere.calibrate.api import calibrate, calibrate_checkpoint
from sere.calibrate.experts import expert_outputs
from sere.texts import load_texts

__all__ = ["calibrate", "calibrate_checkpoint", "expert_outputs", "load_texts"]
