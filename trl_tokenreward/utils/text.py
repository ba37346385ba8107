"""Texts as errors and views quote them."""

import unicodedata
from typing import Any


def visible(text: str) -> str:
    """A text without what a terminal would obey or no page may hold: control characters and half surrogates are
    shown."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs")
        else chr(0x2400 + ord(char))
        if ord(char) < 32
        else "\N{REPLACEMENT CHARACTER}"
        for char in text.replace("\r\n", "\n")
    )


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def quoted_start(text: str) -> str:
    """The beginning of a text, quoted."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
