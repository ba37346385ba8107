"""JSON Lines of doccano's projects of sequence labeling (doccano 1.8).

A line has the `text` and a list `label`, `labels` or `entities` (with relations, or in projects with slots): of
`[start, end, label]`, or of dictionaries with `start_offset`, `end_offset` and `label`. The other fields are those of
the imported data. Texts of spans are not exported.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...utils.text import shorten
from ...utils.validation import check_value, get_value
from .annotations import Annotation, Row, Tool
from .offsets import CODE_POINTS, GRAPHEMES, UTF_16, Mark


DOCCANO = Tool(
    "doccano",
    (CODE_POINTS, UTF_16, GRAPHEMES),
    "doccano's page counts UTF-16 units, or grapheme clusters in a project that says so "
    "(https://github.com/doccano/doccano/issues/2290); spans that were imported may count code points. ",
)

_COLUMNS = ("label", "labels", "entities")
_OWN_FIELDS = {"id", "Comments", "relations", "cats"}


def read_doccano(row: Row, names: Mapping[str, str], notes: Counter[str]) -> Iterator[Annotation | str]:
    """The annotation of a line.

    Args:
        row (`dict`):
            The line.
        names (`Mapping[str, str]`):
            Not used.
        notes (`Counter[str]`):
            Counts of relations are added to it.

    Raises:
        ValueError: If it is malformed.
    """
    found = [name for name in _COLUMNS if isinstance(row.get(name), list)]
    if not found:
        raise ValueError(f"has no list {' or '.join(f'`{name}`' for name in _COLUMNS)}, only {sorted(row)}.")
    if relations := row.get("relations"):
        notes["relations"] += len(check_value(relations, "relations", list))
    marks = {name: [_mark(span, name) for span in row[name]] for name in found}
    data = {name: value for name, value in row.items() if name not in {*found, *_OWN_FIELDS}}
    yield Annotation(data, marks, {})


def _mark(span: Any, name: str) -> Mark:
    if isinstance(span, dict):
        places = [get_value(span, field, kind) for field, kind in _FIELDS]
    elif isinstance(span, list) and len(span) == 3:
        places = [check_value(value, name, kind) for value, (_, kind) in zip(span, _FIELDS, strict=True)]
    else:
        raise ValueError(f"`{name}` has {shorten(span)} in the place of a span, [start, end, label].")
    start, end, label = places
    return Mark(start, end, (label,))


_FIELDS = (("start_offset", int), ("end_offset", int), ("label", str))
