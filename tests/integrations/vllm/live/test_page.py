"""The document: complete in itself, and asking nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from sere.integrations.vllm.live.page import LIVE, PATH, page

DOCUMENT, HEADERS = page()
TEXT = DOCUMENT.decode()


class Elements(HTMLParser):
    """The elements of a document with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        self.found.append((tag, dict(attrs)))


def test_no_other_server_is_asked() -> None:
    """No address of another server is in it but the name of SVG's elements, and the browser would refuse."""
    addresses = re.findall(
        r"(?:https?:)?//[\w.]+[^\s'\"]*", re.sub(r"^\s*//.*$", "", TEXT, flags=re.MULTILINE)
    )
    assert addresses == ["http://www.w3.org/2000/svg"]
    assert not [
        1
        for tag, given in Elements().found
        if "src" in given or (tag == "link" and given["href"] != "data:,")
    ]
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy


def test_the_browser_runs_this_script_only() -> None:
    """The hashes in the header are those of the style and the script in the document."""
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in HEADERS["Content-Security-Policy"]


def test_every_control_has_a_name() -> None:
    """Screen readers are told what each input is for: it is in a label; a button has a text or a label."""
    for label in re.findall(
        r"<(?:input|select)[^>]*>", re.sub(r"<label.*?</label>", "", TEXT, flags=re.DOTALL)
    ):
        assert "hidden" in label
    for given, inside in re.findall(r"<button([^>]*)>(.*?)</button>", TEXT, re.DOTALL):
        assert "aria-labelledby" in given or re.sub(r"<[^>]*>", "", inside).strip()


def test_ids_of_scripts_exist() -> None:
    """What the scripts look for is in the document, once."""
    ids = [given["id"] for _, given in Elements().found if "id" in given]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r"byId\('([\w-]+)'\)", TEXT))
    assert len(asked) > 20
    assert asked <= set(ids)


def test_the_page_asks_relative_to_itself() -> None:
    """Behind a proxy that adds a prefix, the page and what it asks for move together."""
    assert PATH == "/sere/"
    assert f"`..{LIVE}?since=" in TEXT


def luminance(color: str) -> float:
    """The relative luminance of ``#rgb`` or ``#rrggbb``, as WCAG 2.2 defines it."""
    digits = color[1:] if len(color) == 7 else "".join(2 * one for one in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("least", "ground", "names"),
    [
        (4.5, "card", "text soft good bad warn"),
        (4.5, "ground", "text soft"),
        (4.5, "bad-ground", "bad"),
        (4.5, "after", "on-after"),
        (3.0, "card", "before after second focus k0 k1 k2 k3 k4 k5 k6"),
    ],
    ids=["text", "text on the page", "errors", "buttons", "bars and lines"],
)
def test_contrast(scheme: str, least: float, ground: str, names: str) -> None:
    """What carries information can be told from its ground, in both color schemes (WCAG 1.4.3, 1.4.11)."""
    light, dark = re.findall(r":root \{(.*?)\}", TEXT, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w+);", dark if scheme == "dark" else light))
    low = {}
    for name in names.split():
        darker, lighter = sorted((luminance(colors[name]), luminance(colors[ground])))
        if (lighter + 0.05) / (darker + 0.05) < least:
            low[name] = (lighter + 0.05) / (darker + 0.05)
    assert low == {}


def test_what_scrolls_can_be_reached_with_keys() -> None:
    """Each area with a scroll bar of its own takes the focus and has a name."""
    scrolling = [
        given
        for _, given in Elements().found
        if {"scroll", "changes"} & {*(given.get("class") or "").split()}
    ]
    assert len(scrolling) == 2
    for given in scrolling:
        assert given["tabindex"] == "0"
        assert "aria-label" in given or "aria-labelledby" in given
