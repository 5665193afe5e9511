"""Texts and conversations from files, data sets, lists and tables, one row at a time."""

from sere.texts.chat import ChatText, encode, has_template, messages_of, render
from sere.texts.load import Texts, load_texts, shuffled
from sere.texts.openings import OPENINGS
from sere.texts.rows import Row, naming, read_rows
from sere.texts.sources import Source

__all__ = [
    "OPENINGS",
    "ChatText",
    "Row",
    "Source",
    "Texts",
    "encode",
    "has_template",
    "load_texts",
    "messages_of",
    "naming",
    "read_rows",
    "render",
    "shuffled",
]
