"""Engines that we start or set up to measure re-routing."""
