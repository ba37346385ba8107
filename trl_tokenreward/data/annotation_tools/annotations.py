"""What annotators did, in whichever tool, and the rows for [`TokenRewardTrainer`] that become of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...utils.validation import get_value
from ..spans import spans_of_places
from .offsets import CODE_POINTS, OFFSETS, Mark, read_offsets


Row = dict[str, Any]


class Annotation(NamedTuple):
    """What one annotator did with one row.

    Args:
        data (`dict`):
            The fields that the annotator saw.
        marks (`dict[str, list[Mark]]`):
            Spans, by the name of what they were made with: a control of Label Studio, a question of Argilla.
        texts (`dict[str, list[str]]`):
            Texts that the annotator wrote, likewise.
    """

    data: dict[str, Any]
    marks: dict[str, list[Mark]]
    texts: dict[str, list[str]]


class Tool(NamedTuple):
    """A tool, for errors and defaults.

    Args:
        name (`str`):
            What it is called.
        units (`tuple[str, ...]`):
            What its offsets may count, the likeliest first.
        hint (`str`):
            What is known of its offsets.
    """

    name: str
    units: tuple[str, ...]
    hint: str


@dataclass(frozen=True)
class Choices:
    """What the user chose of the annotations, see [`~data.importers.import_dataset`].

    Raises:
        ValueError: If they contradict each other.
    """

    names: Mapping[str, str]
    labels: Sequence[str] | Mapping[str, float] | None = None
    annotators: str = "each"
    offsets: str | None = None

    def __post_init__(self):
        if self.annotators not in ("each", "majority"):
            raise ValueError(f"`annotators` must be 'each' or 'majority', but is {self.annotators!r}.")
        if self.offsets not in (None, *OFFSETS):
            raise ValueError(f"`offsets` must be one of {OFFSETS}, but is {self.offsets!r}.")
        if isinstance(self.labels, str):
            raise ValueError("`labels` must be a list of labels, or a dictionary of their severities, not a text.")
        if self.labels is not None and not self.labels:
            raise ValueError("`labels` names no label, so nothing would be wrong. Leave it out to take all.")
        if isinstance(self.labels, Mapping):
            for label, severity in self.labels.items():
                if not isinstance(severity, (int, float)) or not 0 < severity < float("inf"):
                    raise ValueError(f"The severity of {label!r} must be a number above 0, but is {severity!r}.")
            if self.annotators == "majority":
                raise ValueError("Of a majority there is no severity: give `labels` as a list, or keep each annotator.")


class _Named(NamedTuple):
    """The names of what is read: fields of the data, and what spans and edits were made with."""

    text: str
    prompt: str | None
    spans: str | None
    edit: str | None


class Numbered(NamedTuple):
    """An annotation with the number of its row."""

    row: int
    annotation: Annotation


def make_rows(
    annotations: Sequence[Numbered], choices: Choices, tool: Tool, source: str, notes: Counter[str]
) -> Iterator[Row | str]:
    """The rows of annotations: pairs if annotators edited, else one-sided rows.

    Args:
        annotations (`Sequence[Numbered]`):
            All of a file.
        choices ([`Choices`]):
            What to read of them.
        tool ([`Tool`]):
            Where they are from.
        source (`str`):
            What errors call the file.
        notes (`Counter[str]`):
            Counts of spans that are converted or are not wrong are added to it.

    Yields:
        `prompt`, `chosen`, `rejected` and perhaps `rejected_spans`, or `prompt`, `completion` and `completion_spans`;
        or the reason to drop the annotation.

    Raises:
        ValueError: If a name or a label is not there or must be chosen, or a span does not fit its text. The error of a
            row names it.
    """
    if not annotations:
        return
    every = [annotation for _, annotation in annotations]
    try:
        named = _name(every, choices.names)
        _check_labels(every, named, choices)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error

    def read() -> Iterator[_Marked | str]:
        for row, annotation in annotations:
            try:
                yield _read(annotation, named, choices, tool, notes)
            except ValueError as error:
                raise ValueError(f"Row {row} of {source}: {error}") from error

    for marked in _majority(read()) if choices.annotators == "majority" else read():
        yield marked if isinstance(marked, str) else _finished(marked)


def _name(annotations: Sequence[Annotation], names: Mapping[str, str]) -> _Named:
    found = {
        "spans": sorted({name for annotation in annotations for name in annotation.marks}),
        "edit": sorted({name for annotation in annotations for name in annotation.texts}),
    }
    for role, candidates in found.items():
        if role in names and names[role] not in candidates:
            what = "marks no span" if role == "spans" else "has no text that an annotator wrote"
            raise ValueError(f"{names[role]!r} {what}. Those that do: {candidates or 'none'}.")
    if not found["spans"] and not found["edit"]:
        raise ValueError("No annotation has a span, or a text that an annotator wrote.")
    automatic = "spans" not in names and "edit" not in names
    if automatic and len(found["spans"]) + len(found["edit"]) > 1:
        raise ValueError(
            f"There are spans of {found['spans']} and texts of {found['edit']}: name what to read with `spans`, with "
            "`edit` or with both; on the command line: --spans NAME --edit NAME."
        )
    chosen = {
        role: names.get(role, candidates[0] if automatic and candidates else None) for role, candidates in found.items()
    }
    fields = [name for name, value in annotations[0].data.items() if isinstance(value, str)]
    fields = [name for name in fields if all(isinstance(annotation.data.get(name), str) for annotation in annotations)]
    # Some rows may lack it, or have messages there, which `_read` refuses.
    has_prompt = any(annotation.data.get("prompt") is not None for annotation in annotations)
    has_prompt = has_prompt and fields != ["prompt"] and names.get("text") != "prompt"
    prompt = names.get("prompt", "prompt" if has_prompt else None)
    if (text := names.get("text")) is None:
        candidates = [name for name in fields if name != prompt]
        if len(candidates) > 1 and "prompt" in names and prompt not in fields:
            raise ValueError(f"No field {prompt!r} is a text in all rows; the fields that are: {fields}.")
        if len(candidates) != 1:
            raise ValueError(
                f"The annotated text may be any of the fields {candidates}: name it with `text`, and the prompt, if "
                "there is one, with `prompt`; on the command line: --text FIELD --prompt FIELD."
                if candidates
                else f"No field is a text in all rows; the first has {sorted(annotations[0].data)}."
            )
        text = candidates[0]
    if text == prompt:
        raise ValueError(f"`text` and `prompt` are the same field, {text!r}.")
    return _Named(text, prompt, chosen["spans"], chosen["edit"])


def _check_labels(annotations: Sequence[Annotation], named: _Named, choices: Choices) -> None:
    if named.edit is not None and choices.annotators == "majority":
        raise ValueError("Edits have no majority: name only the `spans`, or keep each annotator.")
    if choices.labels is None:
        return
    if named.spans is None:
        raise ValueError("`labels` has no effect: no spans are read.")
    used = {
        label for annotation in annotations for mark in annotation.marks.get(named.spans, ()) for label in mark.labels
    }
    if unknown := [label for label in choices.labels if label not in used]:
        raise ValueError(f"No span has the label {unknown[0]!r}. The labels are {sorted(used)}.")


class _Marked(NamedTuple):
    """What one annotator did, in code points. The spans have their severities."""

    prompt: str
    text: str
    edit: str | None
    spans: list[tuple[int, int, float | None]] | None


def _read(annotation: Annotation, named: _Named, choices: Choices, tool: Tool, notes: Counter[str]) -> _Marked | str:
    text = get_value(annotation.data, named.text)
    prompt = ""
    if named.prompt is not None:
        if "prompt" not in choices.names and annotation.data.get(named.prompt) is None:
            notes["without a prompt, as others have"] += 1
        else:
            prompt = get_value(annotation.data, named.prompt)
    spans, edit = None, None
    if named.spans is not None:
        spans = _wrong(text, annotation.marks.get(named.spans, []), choices, tool, notes)
    if named.edit is not None:
        edits = annotation.texts.get(named.edit, [])
        if len(edits) != 1:
            reason = "several texts in the place of an edit" if edits else "without an edit"
            return f"marked, but {reason}" if spans else reason
        edit = edits[0]
    return _Marked(prompt, text, edit, spans)


def _wrong(
    text: str, marks: list[Mark], choices: Choices, tool: Tool, notes: Counter[str]
) -> list[tuple[int, int, float | None]]:
    """The spans that are wrong, in order, with the greatest severity of their labels."""
    places, unit = read_offsets(text, marks, tool.units, choices.offsets, tool.hint)
    if unit != CODE_POINTS:
        notes[f"spans converted from offsets in {unit}"] += len(marks)
    severities = choices.labels if isinstance(choices.labels, Mapping) else {}
    spans: dict[tuple[int, int], float | None] = {}
    for place, mark in zip(places, marks, strict=True):
        labels = [label for label in mark.labels if choices.labels is None or label in choices.labels]
        if not labels:
            notes[f"spans of {' and '.join(mark.labels)}, which is not wrong"] += 1
            continue
        severity = max(severities[label] for label in labels) if severities else None
        spans[place] = max(filter(None, (severity, spans.get(place))), default=None)
    return [(*place, severity) for place, severity in sorted(spans.items())]


def _finished(marked: _Marked) -> Row:
    if marked.edit is None:
        spans = [_as_dictionary(*span) for span in marked.spans or []]
        return {"prompt": marked.prompt, "completion": marked.text, "completion_spans": spans}
    pair: Row = {"prompt": marked.prompt, "chosen": marked.edit, "rejected": marked.text}
    if marked.spans is not None:
        pair["rejected_spans"] = [
            [start, end] if severity is None else _as_dictionary(start, end, severity)
            for start, end, severity in marked.spans
        ]
    return pair


def _as_dictionary(start: int, end: int, severity: float | None) -> Row:
    span = {"start": start, "end": end}
    return span if severity is None else {**span, "severity": float(severity)}


def _majority(read: Iterable[_Marked | str]) -> Iterator[_Marked | str]:
    """One of each text: characters that more than half of its annotators marked are wrong."""
    texts: dict[tuple[str, str], list[_Marked]] = {}
    for marked in read:
        if isinstance(marked, str):
            yield marked
        else:
            texts.setdefault((marked.prompt, marked.text), []).append(marked)
    for answers in texts.values():
        votes = [0] * len(answers[0].text)
        for answer in answers:
            for place in {place for start, end, _ in answer.spans or [] for place in range(start, end)}:
                votes[place] += 1
        wrong = spans_of_places(place for place, count in enumerate(votes) if 2 * count > len(answers))
        yield answers[0]._replace(spans=[(start, end, None) for start, end in wrong])
        yield from ["joined with another annotation of the same text"] * (len(answers) - 1)
