"""The page: one HTML document with its styles and scripts in it, which asks nobody but its own server."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

PATH = "/sere/"
"""Where the page is. What it shows is ``LIVE``, relative to it, so both work behind a proxy's prefix."""

LIVE = "/v1/sere/live"
"""Where the page asks for what it shows."""

OFF = 'the live page is off: start the engine with "live_page": true among the settings of sere'
"""What ``PATH`` answers where it was not asked for."""

# In this order they become one script.
_SCRIPTS = ("elements.js", "charts.js", "shown.js", "steer.js", "main.js")


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """Return the document in UTF-8, and the headers of its answer.

    The headers let the browser run this script only, and ask nothing of any other server.
    """
    style = _text("page.css")
    script = "".join(["(() => {\n'use strict';\n", *map(_text, _SCRIPTS), "})();\n"])
    document = _text("page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document.encode(), {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
