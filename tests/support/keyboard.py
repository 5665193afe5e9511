"""A page without a pointer: what the Tab key reaches, and what the browser tells a screen reader."""

from __future__ import annotations

import re
from typing import Any

from tests.support.browser import until

# What is focused, by its id, its label or its text; and whether a person sees that it is.
_FOCUSED = """() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  const name = one.id || one.getAttribute('aria-label') || one.textContent.trim();
  const inside = box.top < innerHeight && box.bottom > 0 && box.left < innerWidth && box.right > 0;
  const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
  return [name, inside && box.width > 1 && outlined];
}"""

# Roles that mean nothing to somebody who hears them without a name.
_NAMED = {
    "article",
    "button",
    "combobox",
    "figure",
    "img",
    "link",
    "option",
    "region",
    "slider",
    "switch",
    "textbox",
}


def focused(page: Any) -> str:
    """Return the name of what has the focus, which must be seen on the screen and have an outline."""
    name, seen = page.evaluate(_FOCUSED)
    assert seen, f"{name} has the focus, and nobody can see that"
    return str(name)


def tab(page: Any, times: int = 1, key: str = "Tab") -> list[str]:
    """Press the Tab key some times; return what it reached."""
    found = []
    for _ in range(times):
        page.keyboard.press(key)
        found.append(focused(page))
    return found


def press(page: Any, key: str, said: str) -> None:
    """Press a key; wait until the live page says what came of it."""
    page.keyboard.press(key)
    until(page, f"document.getElementById('answer').textContent.includes({said!r})")


def spoken(page: Any) -> dict[str, list[str]]:
    """Return the names of the accessibility tree by role, in order; each control and figure has one."""
    text = page.locator("body").aria_snapshot()
    found = re.findall(r'^\s*- (\w+)(?: "((?:[^"\\]|\\.)*)")?', text, re.MULTILINE)
    nameless = [role for role, name in found if role in _NAMED and not name]
    assert nameless == [], f"without a name: {nameless}, in:\n{text}"
    names: dict[str, list[str]] = {}
    for role, name in found:
        names.setdefault(role, []).append(name)
    return names
