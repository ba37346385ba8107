"""Offsets of annotation tools as code points, which Python counts.

A page in a browser counts UTF-16 units unless its author took care, and a character beyond U+FFFF, such as an emoji,
has two. Nothing in an export says what was counted. So the spans are read in each way that the tool may have counted,
and the spans' own texts, where the export has them, decide. If nothing decides, the spans are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import regex

from ...utils.text import quoted_start


CODE_POINTS, UTF_16, GRAPHEMES, BYTES = "code-points", "utf-16", "graphemes", "utf-8"
# No tool counts bytes: that they fit is only a remark of the error.
OFFSETS = (CODE_POINTS, UTF_16, GRAPHEMES)


class Mark(NamedTuple):
    """A span as a tool wrote it.

    Args:
        start, end (`int`):
            Its offsets, in whatever the tool counts.
        labels (`tuple[str, ...]`):
            Its labels, at least one.
        text (`str`, *optional*):
            The marked text, if the export has it.
    """

    start: int
    end: int
    labels: tuple[str, ...]
    text: str | None = None


class Spans(NamedTuple):
    """Spans of code points, one for each [`Mark`], and the unit in which the tool had counted them."""

    places: list[tuple[int, int]]
    unit: str


def read_offsets(
    text: str,
    marks: Sequence[Mark],
    units: Sequence[str] = (CODE_POINTS, UTF_16),
    given: str | None = None,
    hint: str = "",
) -> Spans:
    """The marks of one annotator in one text as spans of code points.

    Args:
        text (`str`):
            The text that they mark.
        marks (`Sequence[Mark]`):
            The marks.
        units (`Sequence[str]`, *optional*):
            What the tool may have counted, the likeliest first: `"code-points"`, `"utf-16"`, `"graphemes"`.
        given (`str`, *optional*):
            The unit, if the user says it.
        hint (`str`, *optional*):
            What the error says of the tool if nothing decides between the units.

    Raises:
        ValueError: If a mark lies outside of the text or its own text is another one, in every unit; or if the units
            give different spans and nothing says which is meant.
    """
    tried = (given,) if given is not None else tuple(units)
    readings = {unit: _read(text, marks, unit) for unit in tried}
    fitting = {unit: spans for unit, spans in readings.items() if spans is not None}
    exact = {unit: spans for unit, spans in fitting.items() if _is_exact(text, marks, spans)}
    fitting = exact or fitting
    # That the likeliest unit does not fit proves no other one: the marks' own texts do.
    if tried[0] not in fitting and not (fitting and all(mark.text is not None for mark in marks)):
        raise ValueError(_misfit(text, marks, tried[0]))
    if len({*map(tuple, fitting.values())}) > 1:
        raise ValueError(
            f"the offsets of its spans may count {' or '.join(fitting)}, which is not the same in this text, and "
            f"nothing tells which it is. {hint}Say so with `offsets`; on the command line: --offsets."
        )
    unit, spans = next(iter(fitting.items()))
    return Spans(spans, unit)


def _read(text: str, marks: Sequence[Mark], unit: str) -> list[tuple[int, int]] | None:
    """The spans, or `None` if a mark does not fit."""
    places, spans = _places(text, unit), []
    for mark in marks:
        span = _span(mark, places)
        if span is None or not _same(mark.text, text[slice(*span)]):
            return None
        spans.append(span)
    return spans


def _is_exact(text: str, marks: Sequence[Mark], spans: Sequence[tuple[int, int]]) -> bool:
    """Whether the marks' own texts are what they mark, also in their white space."""
    return all(mark.text == text[slice(*span)] for mark, span in zip(marks, spans, strict=True))


def _span(mark: Mark, places: Sequence[int | None]) -> tuple[int, int] | None:
    if not 0 <= mark.start < mark.end < len(places):
        return None
    start, end = places[mark.start], places[mark.end]
    return None if start is None or end is None else (start, end)


def _places(text: str, unit: str) -> list[int | None]:
    """For each offset, the code point there; `None` within a code point."""
    return [*_UNITS[unit](text), len(text)]


def _by_size(size: Callable[[str], int]) -> Callable[[str], Iterator[int | None]]:
    def places(text: str) -> Iterator[int | None]:
        for place, character in enumerate(text):
            yield place
            yield from [None] * (size(character) - 1)

    return places


def _graphemes(text: str) -> Iterator[int | None]:
    return accumulate((len(cluster) for cluster in regex.findall(r"\X", text)[:-1]), initial=0) if text else iter(())


_UNITS: dict[str, Callable[[str], Iterator[int | None]]] = {
    CODE_POINTS: _by_size(lambda character: 1),
    UTF_16: _by_size(lambda character: 2 if character > "\uffff" else 1),
    GRAPHEMES: _graphemes,
    BYTES: _by_size(lambda character: len(character.encode())),
}


def _same(own: str | None, marked: str) -> bool:
    """Whether a mark's own text is what it marks. Label Studio writes line breaks as a backslash and an n, and white
    space as the page showed it."""
    return own is None or own == marked or _squeezed(own) == _squeezed(marked)


def _squeezed(text: str) -> str:
    return " ".join(text.replace("\\n", "\n").split())


def _misfit(text: str, marks: Sequence[Mark], unit: str) -> str:
    """What is wrong with the first mark that does not fit, and which other unit would explain it."""
    mark = next(mark for mark in marks if _read(text, [mark], unit) is None)
    span = _span(mark, _places(text, unit))
    problem = f"the span [{mark.start}, {mark.end}) of {' and '.join(map(repr, mark.labels))} "
    if span is None:
        problem += f"must lie within the {len(text)} characters of the text, begin before it ends and cut no character."
    else:
        there = quoted_start(text[slice(*span)])
        problem += f"should have the text {quoted_start(mark.text or '')}, but the annotated text there is {there}."
    others = [other for other in _UNITS if other != unit and _read(text, marks, other) is not None]
    if others == [BYTES]:
        return f"{problem} It fits if the offsets count UTF-8 bytes: convert them to code points."
    if others:
        return f"{problem} It fits with `offsets={others[0]!r}`; on the command line: --offsets {others[0]}."
    return problem
