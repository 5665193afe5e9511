"""A small real ``vllm serve`` of the bundled model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sere.engines import server
from sere.engines.server import Server, free_port
from tests.support.patience import HANGS_S

__all__ = ["Server", "complete", "free_port", "serve"]

_ARGUMENTS = ("--served-model-name", "tiny", "--max-model-len", "256", "--max-num-seqs", "32")


def serve(model: Path, sere: Any, folder: Path, *arguments: str) -> AbstractContextManager[Server]:
    """Start a small server whose model is called ``tiny``; its log lies in a folder."""
    return server.serve(model, sere, folder / "server.log", *_ARGUMENTS, *arguments, start_s=HANGS_S)


def complete(server: Server, prompt: str, **options: Any) -> tuple[int, Any]:
    """Ask for a completion, decoded greedily."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return server.post("/v1/completions", body | options)
