"""Records of Argilla 2.x as a data set, as `dataset.records(...).to_datasets()` gives it (argilla 2.8.0).

Each field is a column. A question has the columns `NAME.responses`, `NAME.responses.users` and `NAME.responses.status`,
lists with an entry for each response. The response to a `SpanQuestion` is a list of `start`, `end` and `label`, that to
a `TextQuestion` a text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ...utils.validation import check_value, get_value
from .annotations import Annotation, Row, Tool
from .offsets import CODE_POINTS, UTF_16, Mark


ARGILLA = Tool(
    "Argilla",
    (CODE_POINTS, UTF_16),
    "Argilla's page counts UTF-16 units (https://github.com/argilla-io/argilla/issues/5729), but spans that a program "
    "wrote may count code points. ",
)

_RESPONSES, _SUGGESTION = ".responses", ".suggestion"
_OF_QUESTION = re.compile(r"\.(responses(\.users|\.status)?|suggestion(\.agent|\.score)?)$")
_OWN_FIELDS = {"id", "status", "_server_id"}
_REASONS = {"draft": "a draft", "discarded": "skipped"}


def read_argilla(row: Row, names: Mapping[str, str], notes: Counter[str]) -> Iterator[Annotation | str]:
    """The annotations of a record, one for each user that responded; or reasons to drop them.

    Args:
        row (`dict`):
            The record.
        names (`Mapping[str, str]`):
            Not used.
        notes (`Counter[str]`):
            The count of suggestions, which are no annotations, is added to it.

    Raises:
        ValueError: If it is malformed.
    """
    questions = [name.removesuffix(_RESPONSES) for name in row if name.endswith(_RESPONSES)]
    if not questions:
        raise ValueError(
            f"has no column that ends in {_RESPONSES!r}, only {sorted(row)}: save the data set that "
            "`dataset.records().to_datasets()` gives."
        )
    if suggested := sum(name.endswith(_SUGGESTION) and value is not None for name, value in row.items()):
        notes["suggestions, which are no annotations"] += suggested
    data = {name: value for name, value in row.items() if name not in _OWN_FIELDS and not _OF_QUESTION.search(name)}
    by_user: dict[str, dict[str, Any]] = {}
    statuses: dict[str, str] = {}
    for question in questions:
        for value, user, status in _responses(row, question):
            by_user.setdefault(check_value(user, "users", str), {})[question] = value
            statuses[user] = check_value(status, "status", str)
    if not by_user:
        yield "not annotated"
    for user, values in by_user.items():
        if statuses[user] != "submitted":
            yield _REASONS.get(statuses[user], f"a response with the status {statuses[user]!r}")
            continue
        marks = {name: _marks(value, name) for name, value in values.items() if _is_spans(value)}
        texts = {name: [value] for name, value in values.items() if isinstance(value, str)}
        for name in values.keys() - marks.keys() - texts.keys():
            notes[f"responses to {name}, which are neither spans nor a text"] += 1
        yield Annotation(data, marks, texts)


def _responses(row: Row, question: str) -> list[tuple[Any, Any, Any]]:
    names = [f"{question}{_RESPONSES}{ending}" for ending in ("", ".users", ".status")]
    if row[names[0]] is None:
        return []
    columns = [get_value(row, name, list) for name in names]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"`{names[0]}` has {len(columns[0])} entries, but its users and status do not.")
    return [*zip(*columns, strict=True)]


def _is_spans(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(span, dict) and "start" in span for span in value)


def _marks(spans: list[Row], name: str) -> list[Mark]:
    return [
        Mark(
            get_value(span, "start", int),
            get_value(span, "end", int),
            (check_value(span.get("label"), f"{name} label", str),),
        )
        for span in spans
    ]
