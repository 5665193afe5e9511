"""Confidence intervals: over independent questions, and over prompts whose tokens depend on each other."""
