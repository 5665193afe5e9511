"""The document: complete in itself, and asking nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

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
