"""Timing of vLLM, in this process and over HTTP."""
