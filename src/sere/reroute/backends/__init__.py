"""Implementations of re-routing: the reference in plain loops, and what must equal it."""
