"""How long a test waits for what must come."""

from __future__ import annotations

# Only what hangs is given up, before faulthandler ends the whole run (Makefile): importing vLLM for the first
# time took over two minutes on a busy machine with a cold disk, and a machine stood still for seven.
HANGS_S = 720
HANGS_MS = 1000 * HANGS_S
