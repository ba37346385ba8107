"""Spans of characters that a row marks as wrong, and the tokens that they mark."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..utils.text import shorten


def read_span(span: Any) -> tuple[int, int]:
    """The places of one span, `[start, end]` or a dictionary with `start` and `end`.

    Raises:
        ValueError: If it is neither.
    """
    places = [span.get("start"), span.get("end")] if isinstance(span, dict) else span
    if not isinstance(places, (list, tuple)) or [type(place) for place in places] != [int, int]:
        raise ValueError(f"a span is [start, end], or has `start` and `end`, but one is {shorten(span)}.")
    return places[0], places[1]


def read_spans(spans: Any, text: str, name: str = "original") -> list[list[int]]:
    """Checks spans of characters of `text`, each `[start, end]` or a dictionary with `start` and `end`.

    Args:
        spans (`Any`):
            What a row has in the place of a list of spans.
        text (`str`):
            The text that they mark.
        name (`str`, *optional*, defaults to `"original"`):
            What errors call the text.

    Raises:
        ValueError: If they are no list of spans, or one does not lie within the text.
    """
    if not isinstance(spans, list):
        raise ValueError(f"spans must be a list, empty where nothing is wrong, but are {shorten(spans)}.")
    read = []
    for span in spans:
        start, end = read_span(span)
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"the span [{start}, {end}) must lie within the {len(text)} characters of the {name}, and begin before "
                "it ends."
            )
        read.append([start, end])
    return read


def spans_of_places(places: Iterable[int]) -> list[list[int]]:
    """The spans `[start, end)` that hold some places of a text, given in any order, and no other ones."""
    spans: list[list[int]] = []
    for place in sorted(set(places)):
        if spans and spans[-1][1] == place:
            spans[-1][1] += 1
        else:
            spans.append([place, place + 1])
    return spans


def without_white_space(text: str, start: int, end: int) -> tuple[int, int]:
    """The span `[start, end)` of a text without the white space at its edges, unless it is nothing else."""
    words = text[start:end]
    if words.strip():
        start, end = end - len(words.lstrip()), start + len(words.rstrip())
    return start, end


def read_severity(span: Any) -> float:
    """How much a span weighs: its `severity`, or 1 where it has none.

    Raises:
        ValueError: If it is no positive finite number.
    """
    severity = span.get("severity") if isinstance(span, dict) else None
    if severity is None:
        return 1.0
    if isinstance(severity, bool) or not isinstance(severity, (int, float)) or not 0 < severity < math.inf:
        raise ValueError(f"the `severity` of a span must be a positive number, but is {shorten(severity)}.")
    return float(severity)


def tokens_of_span(text: str, span: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens that overlap a span of characters.

    White space at the span's edges marks none, since it would mark the next word, whose token has the space in front.

    Args:
        text (`str`):
            The text.
        span (`Sequence[int]`):
            `[start, end)`.
        offsets (`Sequence[tuple[int, int]]`):
            The characters of each token.
    """
    start, end = without_white_space(text, *span)
    return [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
