"""Calibration of a checkpoint one layer at a time, for models larger than memory."""
