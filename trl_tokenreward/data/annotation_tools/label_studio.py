"""Exports of Label Studio, JSON and JSON_MIN, as its converter writes them (label-studio-sdk 2.1.2).

JSON has a task with `data` and `annotations`, each a list of results:
`{"from_name": "label", "to_name": "text", "type": "labels", "value": {"start": 2, "end": 5, "labels": ["wrong"]}}`,
with the `text` of the span unless the labeling interface has `saveTextResult="no"`. What was written into a text area
is a result of the type `textarea` with a list of texts. JSON_MIN has a row for each annotation, with the fields of
`data` and the values of each control side by side.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ...utils.text import shorten
from ...utils.validation import check_value, get_value
from .annotations import Annotation, Row, Tool
from .offsets import CODE_POINTS, UTF_16, Mark


LABEL_STUDIO = Tool(
    "Label Studio",
    (CODE_POINTS, UTF_16),
    "Label Studio counted UTF-16 units up to about version 1.3 and counts code points since "
    "(https://github.com/HumanSignal/label-studio/issues/1347). ",
)

# What JSON_MIN adds to the fields of a task and the values of its controls.
_MIN_FIELDS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
_HTML = {"hypertextlabels", "paragraphlabels", "timelinelabels"}


def read_label_studio(row: Row, names: Mapping[str, str], notes: Counter[str]) -> Iterator[Annotation | str]:
    """The annotations of a task of JSON, or of a row of JSON_MIN; or reasons to drop them.

    Args:
        row (`dict`):
            The task, or the row.
        names (`Mapping[str, str]`):
            What the user named. In JSON_MIN an edit looks like any other field.
        notes (`Counter[str]`):
            Counts of what is no annotation, such as predictions, are added to it.

    Raises:
        ValueError: If it is malformed, or marks something else than a plain text.
    """
    if "data" in row:
        return _task(row, notes)
    if "annotation_id" in row:
        return _minimal(row, names, notes)
    raise ValueError(
        f"is neither a task (`data`, `annotations`) nor a row of JSON_MIN, but has {sorted(map(str, row))}."
    )


def _task(task: Row, notes: Counter[str]) -> Iterator[Annotation | str]:
    data = get_value(task, "data", dict)
    for name in ("predictions", "drafts"):
        if others := task.get(name):
            notes[f"{name}, which are no annotations"] += len(check_value(others, name, list))
    name = "annotations" if "annotations" in task else "completions"  # its name before version 1.0
    annotations = check_value(task.get(name) or [], name, list)
    if not annotations:
        yield "not annotated"
    for annotation in annotations:
        check_value(annotation, name, dict)
        if annotation.get("was_cancelled") or annotation.get("skipped"):
            yield "skipped"
        else:
            yield _annotation(data, get_value(annotation, "result", list), notes)


def _annotation(data: Row, results: list[Any], notes: Counter[str]) -> Annotation:
    marks: defaultdict[str, list[Mark]] = defaultdict(list)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    marked: dict[str, Any] = {}
    for result in results:
        kind = get_value(check_value(result, "result", dict), "type")
        if kind == "labels":
            name, text = get_value(result, "from_name"), result.get("to_name")
            if marked.setdefault(name, text) != text:
                raise ValueError(f"{name!r} marks both {marked[name]!r} and {text!r}: only one text can be imported.")
            marks[name].append(_mark(get_value(result, "value", dict)))
        elif kind == "textarea":
            value = get_value(result, "value", dict)
            if "start" in value or result.get("id") in _ids_of_spans(results):
                notes["texts about a single span"] += 1
            else:
                texts[get_value(result, "from_name")] += _texts(value)
        elif kind in _HTML:
            raise ValueError(f"has a result of the type {kind!r}, whose places are not characters of a plain text.")
        else:
            notes[f"results of the type {kind}"] += 1
    return Annotation(data, dict(marks), dict(texts))


def _ids_of_spans(results: list[Any]) -> list[Any]:
    spans = (result for result in results if isinstance(result, dict) and result.get("type") == "labels")
    return [result["id"] for result in spans if result.get("id") is not None]


def _mark(value: Row) -> Mark:
    if not isinstance(value.get("start"), int):
        raise ValueError(
            f"a span begins at {shorten(value.get('start'))}, which is no character of a plain text: only labels of "
            "Text tags can be imported."
        )
    labels = get_value(value, "labels", list)
    if not labels:
        raise ValueError(f"the span {shorten(value)} has no label.")
    text = value.get("text")
    return Mark(
        get_value(value, "start", int),
        get_value(value, "end", int),
        tuple(check_value(label, "labels", str) for label in labels),
        None if text is None else check_value(text, "text", str),
    )


def _texts(value: Row) -> list[str]:
    texts = value.get("text")
    return (
        [texts]
        if isinstance(texts, str)
        else [check_value(text, "text", str) for text in get_value(value, "text", list)]
    )


def _minimal(row: Row, names: Mapping[str, str], notes: Counter[str]) -> Iterator[Annotation | str]:
    if row["annotation_id"] is None:
        yield "not annotated"
        return
    data: Row = {}
    marks: dict[str, list[Mark]] = {}
    texts: dict[str, list[str]] = {}
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        if name in _MIN_FIELDS:
            continue
        if name == names.get("edit"):
            texts[name] = [
                text for one in values for text in (_texts(one) if isinstance(one, dict) else _texts({"text": one}))
            ]
        elif values and all(isinstance(one, dict) and "labels" in one for one in values):
            marks[name] = [_mark(one) for one in values]
        elif any(isinstance(one, dict) and _HTML & one.keys() for one in values):
            raise ValueError(f"`{name}` has spans whose places are not characters of a plain text.")
        else:
            data[name] = value
    yield Annotation(data, marks, texts)
