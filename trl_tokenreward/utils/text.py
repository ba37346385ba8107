"""Texts as errors and views quote them, and what is no text."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any


_SURROGATE = re.compile("[\ud800-\udfff]")


def unicode_problem(value: Any) -> str | None:
    """Why a text, or one of the texts in lists and dictionaries, is not Unicode text; `None` if all are.

    A Python `str` may hold half of a surrogate pair, which no encoding, tokenizer or Arrow column takes. It comes from
    JSON with an escape such as `"\\ud83d"` and from bytes that are not UTF-8.
    """
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if found := _SURROGATE.search(value):
                return (
                    f"has half of a character, {found[0]!r} (a lone surrogate, at character {found.start()}), so it is "
                    "not Unicode text. Remove it, or write the text as UTF-8 again."
                )
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
    return None


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


def distinct(names: Sequence[str]) -> list[str]:
    """Adds a number to equal names, for example of one model with two signals."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]
