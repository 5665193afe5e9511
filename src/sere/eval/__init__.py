"""Measure what re-routing costs in answers: tasks, decoding in steps of B rows, scores, intervals."""
