"""Digests that tell one model, folder or list of texts from another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sere.defaults import TABLES


def weights_digest(model: Any) -> str:
    """Return a digest of samples of every weight: it differs between models of equal shape."""
    digest = blake2b(digest_size=16)
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].double().cpu()
        digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()


def files_digest(folder: str | os.PathLike[str]) -> str:
    """Return a digest of the names, sizes and times of a folder's files: it differs once weights change.

    A table beside the weights does not count: it is told apart by its own fingerprint.
    """
    digest = blake2b(digest_size=16)
    for path in sorted(path for path in Path(folder).iterdir() if path.name not in TABLES):
        found = path.stat()
        digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def texts_digest(texts: Sequence[str]) -> str:
    """Return a digest of texts in their order."""
    return blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=16).hexdigest()
