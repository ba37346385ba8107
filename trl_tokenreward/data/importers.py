"""Importers: data sets of other formats → the columns of [`TokenRewardTrainer`]: `prompt`, `chosen` (the edit),
`rejected` (the original) and, if the wrong characters are known, `rejected_spans`; or, of what was marked and not
edited, `completion` and `completion_spans`, of solutions in steps with `completion_judged` (see `data.steps`).

Heavy imports happen inside functions, because the command line reads the names of the formats from here.
"""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.messages import is_message, other_fields
from ..utils.text import shorten, visible
from ..utils.validation import get_value
from .foreign_rows import convert_rows
from .spans import read_severity, read_spans, spans_of_places
from .steps import STEP_LABELS, prmbench_rows, stepwise_row


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from rich.table import Table

    from .steps import StepLabels


Row = dict[str, Any]

FORMATS = {
    "hh-rlhf": "pairs of whole dialogues",
    "ultrafeedback": "pairs of conversations, with the prompt as a text beside them (binarized)",
    "qa-feedback": "answers with the characters that are wrong, and their corrections",
    "paradetox": "toxic sentences with up to three neutral rewrites (TSV, or the columns on the Hub)",
    "label-studio": "spans and edits of Label Studio (JSON or JSON_MIN)",
    "argilla": "spans and edits of Argilla (a data set)",
    "doccano": "spans of doccano (JSON Lines)",
    "toxic-spans": "posts with the characters that are toxic, and no correction (SemEval-2021 task 5, CSV)",
    "stepwise": "TRL's stepwise supervision: solutions in steps, with a label for each",
    "prmbench": "solutions in steps, and the same with wrong steps",
    "columns": "any two columns, and optionally a prompt and spans",
}
NAMES = {
    "prompt": "prompt (default: none; of messages, those that both sides begin with; of annotations, `prompt`)",
    "chosen": "edit",
    "rejected": "original",
    "spans": "spans that are wrong: [[start, end], ...], in CSV as JSON; of annotations, their control or question",
    "text": "annotated text (annotations alone)",
    "edit": "edit: a text area, or a question (annotations alone)",
}
_NAMES_OF_COLUMNS = {"prompt", "chosen", "rejected", "spans"}
_NAMES_OF_TOOLS = {"prompt", "spans", "text", "edit"}
_TOOLS = ("label-studio", "argilla", "doccano")

STEP_FORMATS = ("stepwise", "prmbench")


class Imported(NamedTuple):
    """A data set that was imported.

    Args:
        dataset (`Dataset`):
            The pairs, or the one-sided rows.
        counts (`dict[str, int]`):
            `"rows"` read, `"kept"` pairs or one-sided rows, and what was dropped by reason. A row may have several
            pairs or solutions, or lack one.
        notes (`dict[str, int]`, *optional*):
            What was done to parts of rows that were kept, such as spans whose offsets were converted.
    """

    dataset: "Dataset"
    counts: dict[str, int]
    notes: Mapping[str, int] = MappingProxyType({})

    def table(self) -> "Table":
        """The counts, for rich to print."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        names = {"rows": "rows read", "kept": "kept"}
        for name, count in self.counts.items():
            table.add_row(Text(visible(names.get(name, f"dropped: {name}"))), str(count))
        for name, count in self.notes.items():
            table.add_row(Text(visible(name)), str(count))
        return table


def import_dataset(
    format: str,
    source: "str | Path | Dataset | IterableDataset",
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | Mapping[str, float] | None = None,
    annotators: str = "each",
    offsets: str | None = None,
    step_separator: str | None = None,
    step_labels: "StepLabels | None" = None,
) -> Imported:
    """Brings a data set into the columns of [`TokenRewardTrainer`].

    The formats:

    - `"hh-rlhf"`: `chosen` and `rejected` are dialogues. The prompt is everything up to the last `"\\n\\nAssistant:"`
      that they share.
    - `"ultrafeedback"`: `chosen` and `rejected` are messages. The prompt is those that both begin with; the column
      `prompt` repeats its last message as a text and is not used.
    - `"qa-feedback"`: the first prediction, what its annotator marked and what they made of it. The prompt is
      `"Question: …\\nAnswer:"`, without the passages that the answers were drawn from.
    - `"paradetox"`: one pair for each rewrite of a sentence, without a prompt. The sentences are lower-case with spaces
      before punctuation and the rewrites are not, so many of these edits are of spelling.
    - `"label-studio"`, `"argilla"`, `"doccano"`: what people marked or edited in these tools, see below.
    - `"toxic-spans"`: `text`, and `spans`, the places of its toxic characters as a list (`"[8, 9, 10]"`; `"[]"` where
      nothing is toxic). They become rows of one side, `completion` and `completion_spans`.
    - `"stepwise"`: TRL's stepwise supervision, `prompt`, `completions` (the steps) and `labels`, see
      [`~data.steps.stepwise_row`].
    - `"prmbench"`: a right solution and the same with wrong steps, as two rows, see [`~data.steps.prmbench_rows`].
    - `"columns"`: the columns that `columns` names, texts or messages. Texts without a prompt have none; of messages it
      is those that both sides begin with. In CSV all values are texts, and spans are JSON.

    Pairs whose sides are the same, and rows with an empty side, are dropped and counted, as are solutions that have no
    steps, an empty one, or none that was judged.

    Annotations with an edit become pairs. Spans alone become one-sided rows: `prompt`, `completion` and
    `completion_spans`, a list of `start`, `end` and, if `labels` has severities, `severity`. A text in which nothing is
    marked has none and is kept, because all of it is right. What annotators skipped or left as a draft is dropped and
    counted. Offsets become code points, and a span that does not fit its text is an error, see
    [`~data.annotation_tools.offsets.read_offsets`].

    Args:
        format (`str`):
            One of the above.
        source (`str`, `Path`, `Dataset` or `IterableDataset`):
            A file (JSON, JSON Lines, CSV, TSV or Parquet, compressed or not), a folder, or a name on the Hub, as in
            [`~utils.loading.load_split`]; or the data set itself. For `"label-studio"` and `"doccano"` a file.
        split (`str`, *optional*, defaults to `"train"`), config (`str`, *optional*):
            As in [`~utils.loading.load_split`].
        columns (`Mapping[str, str]`, *optional*):
            For `"columns"`: the columns that are the `"chosen"`, the `"rejected"`, and optionally the `"prompt"` and
            the `"spans"`. Spans are `[start, end)` characters of the original, or dictionaries with `start`, `end` and
            optionally `severity`. For annotations: the fields that are the `"text"` and the `"prompt"` (by default
            `prompt`, if there is such a field, and the only other text), and what the `"spans"` and the `"edit"` were
            made with (by default, the only one that there is): controls of Label Studio, questions of Argilla, the list
            of doccano. If one is named, only what is named is read.
        labels (`Sequence[str]` or `Mapping[str, float]`, *optional*):
            For annotations: the labels that mark what is wrong, or their severities, above 0. Others are no spans. By
            default, all labels do.
        annotators (`str`, *optional*, defaults to `"each"`):
            For annotations of one text by several people: `"each"` has a row of its own, or characters that a
            `"majority"` of them marked are wrong, more than half.
        offsets (`str`, *optional*):
            For annotations: what offsets count, `"code-points"`, `"utf-16"` or `"graphemes"`. By default, the spans
            themselves must tell.
        step_separator (`str`, *optional*):
            For solutions in steps alone: what stands between two steps. If `None`, `"\\n"`.
        step_labels (`str`, *optional*):
            For solutions in steps alone: `"every_token"` of a step has the step's label, or the `"last_token"`. If
            `None`, `"every_token"`.

    Returns:
        [`Imported`]: the pairs or solutions, and what became of the rows. Spans of pairs are `[start, end]`, or
        dictionaries where one of them has a severity.

    Raises:
        ValueError: If the format or a column is unknown, a setting is for other formats, a row is malformed (the error
            names it, counted from 0), or nothing is left.
    """
    from datasets import Dataset

    columns = dict(columns or {})
    _check_names(format, columns)
    if format not in _TOOLS and (labels is not None or annotators != "each" or offsets is not None):
        raise ValueError(
            f"`labels`, `annotators` and `offsets` are for annotations ({', '.join(_TOOLS)}), not {format!r}."
        )
    settings = {"step_separator": step_separator, "step_labels": step_labels}
    given = {name: value for name, value in settings.items() if value is not None}
    if given and format not in STEP_FORMATS:
        raise ValueError(f"The format {format!r} has no steps: {sorted(given)} are for {list(STEP_FORMATS)} alone.")
    if step_labels is not None and step_labels not in STEP_LABELS:
        raise ValueError(f"`step_labels` must be one of {list(STEP_LABELS)}, not {step_labels!r}.")
    counts: Counter[str] = Counter(rows=0, kept=0)
    notes: Counter[str] = Counter()
    name = str(source) if isinstance(source, (str, Path)) else "the data set"
    if format in _TOOLS:
        from .annotation_tools.annotations import Choices
        from .annotation_tools.reading import annotated_rows, check_file, read_json

        choices = Choices(columns, labels, annotators, offsets)
        if format == "argilla":
            rows = _read(source, split, config)
        else:
            rows = read_json(check_file(source, format, split, config))
        made = annotated_rows(format, rows, choices, name, counts, notes)
    else:
        convert = partial(_columns, names=columns) if format == "columns" else partial(_CONVERT[format], **given)
        made = convert_rows(_read(source, split, config), convert, name, counts)
    kept: list[Row] = []
    for row in made:
        reason = row if isinstance(row, str) else _nothing_to_learn(row)
        counts[reason or "kept"] += 1
        if reason is None and not isinstance(row, str):
            kept.append(row)
    if not kept:
        dropped = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
        what = "row" if format in _TOOLS else "solution" if format in STEP_FORMATS else "pair"
        raise ValueError(f"No {what} is left of {name} ({dropped}).")
    kept = _in_one_notation(kept)
    return Imported(Dataset.from_list(kept, features=_features(kept, name)), dict(counts), dict(notes))


def _check_names(format: str, columns: Row) -> None:
    if format not in FORMATS:
        raise ValueError(f"The format must be one of {list(FORMATS)}, but is {format!r}.")
    if format in _TOOLS:
        if unknown := columns.keys() - _NAMES_OF_TOOLS:
            raise ValueError(f"{format!r} takes the names {sorted(_NAMES_OF_TOOLS)}, not {sorted(unknown)}.")
    elif format == "columns":
        if not {"chosen", "rejected"} <= columns.keys() <= _NAMES_OF_COLUMNS:
            raise ValueError(
                f"The format 'columns' needs the columns `chosen` and `rejected`, and may have `prompt` and `spans`; "
                f"given are {sorted(columns)}. On the command line: --chosen COLUMN --rejected COLUMN."
            )
    elif columns:
        raise ValueError(f"The format {format!r} has columns of its own: {sorted(columns)} are for 'columns' alone.")


def _features(rows: list[Row], name: str) -> "Features":
    from datasets import Features, List, Value

    messages = List({"role": Value("string"), "content": Value("string")})
    kinds: dict[str, Any] = {}
    for column in ("prompt", "chosen", "rejected", "completion"):
        types = {type(row[column]) for row in rows if column in row}
        if len(types) > 1:
            raise ValueError(f"`{column}` is a text in some rows of {name} and a list of messages in others.")
        if types:
            kinds[column] = messages if types == {list} else Value("string")
    for column in ("rejected_spans", "completion_spans"):
        if column in rows[0]:
            kinds[column] = List(_span_kind([span for row in rows for span in row[column] or ()]))
    if "completion_judged" in rows[0]:
        kinds["completion_judged"] = List(List(Value("int64")))
    return Features(kinds)


def _in_one_notation(rows: list[Row]) -> list[Row]:
    """The rows, with the spans of pairs as dictionaries in all where one of them has a severity."""
    marked = [row for row in rows if row.get("rejected_spans")]
    if any(isinstance(span, dict) for row in marked for span in row["rejected_spans"]):
        for row in marked:
            row["rejected_spans"] = [*map(_as_dictionary, row["rejected_spans"])]
    return rows


def _as_dictionary(span: Any) -> Row:
    return span if isinstance(span, dict) else {"start": span[0], "end": span[1]}


def _span_kind(spans: list[Any]) -> Any:
    """The feature of spans: `[start, end]`, or dictionaries that may have a severity."""
    from datasets import List, Value

    if not any(isinstance(span, dict) for span in spans):
        return List(Value("int64"))
    kind = {"start": Value("int64"), "end": Value("int64")}
    return {**kind, "severity": Value("float64")} if any("severity" in span for span in spans) else kind


def _nothing_to_learn(pair: Row) -> str | None:
    """The reason to drop a pair or a one-sided row, or `None`."""
    if "completion" in pair:
        return None if pair["completion"].strip() else "the text is empty"
    chosen, rejected = pair["chosen"], pair["rejected"]
    if chosen == rejected:
        # The marked text would count as wrong on one side and as right on the other.
        return "marked, but the edit is the original" if pair.get("rejected_spans") else "the edit is the original"
    for name, side in (("edit", chosen), ("original", rejected)):
        texts = [side] if isinstance(side, str) else [message["content"] for message in side]
        if not any(text.strip() for text in texts):
            return f"the {name} is empty"
    return None


# Reading


def _read(source: "str | Path | Dataset | IterableDataset", split: str, config: str | None) -> Iterable[Row]:
    if not isinstance(source, (str, Path)):
        if split != "train" or config is not None:
            raise ValueError("`split` and `config` have no effect on a data set that is loaded.")
        if getattr(source, "format", {}).get("type") == "custom":
            raise ValueError("The data set has a transform, which reads no columns: apply it with `dataset.map`.")
        return _named(source.with_format(None), "the data set")
    suffixes = [suffix for suffix in Path(source).suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1] in (".csv", ".tsv") and Path(source).is_file() and split == "train" and not config:
        # Not by `load_dataset`, which would make numbers of answers such as "42", and nothing of "NA".
        return _read_csv(Path(source), tabs=suffixes[-1] == ".tsv")
    from ..utils.loading import load_split

    return _named(load_split(source, split, config, streaming=True), source)


def _named(rows: Iterable[Row], source: str | Path) -> Iterator[Row]:
    """The rows; errors of the reader, such as pyarrow's, name the source."""
    try:
        yield from rows
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{source} cannot be read: {error}") from error


def _read_csv(path: Path, tabs: bool) -> Iterator[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    dialect: dict[str, Any] = {"strict": True, "delimiter": "\t" if tabs else ","}
    if tabs and not _is_quoted(path, opened, dialect):
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file, _cells_of_any_length():
        index = -1
        try:
            for index, row in enumerate(csv.DictReader(file, **dialect)):
                if None in row:  # a row may lack its last columns
                    raise ValueError(f"Row {index} of {path}: has more fields than the header.")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"Row {index + 1} of {path}: {error}.") from error


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """By default, `csv` refuses cells of more than 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)  # the most that fits everywhere
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _is_quoted(path: Path, opened: Callable[..., Any], dialect: dict[str, Any]) -> bool:
    """Whether quotation marks in a file of tabs are those of CSV. Many such files have none, but as parts of texts: a
    cell above the limit of `csv` began with such a one."""
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            for _ in csv.reader(file, **dialect):
                pass
        except csv.Error:
            return False
        except UnicodeDecodeError:  # an error of the reading to come, which names the row
            return True
    return True


# One function for each format: it returns pairs or rows of one side, or the reason to drop the row.


def _hh_rlhf(row: Row) -> Iterator[Row | str]:
    yield _split({side: get_value(row, side) for side in ("chosen", "rejected")})


def _ultrafeedback(row: Row) -> Iterator[Row | str]:
    sides = {side: _messages(row, side) for side in ("chosen", "rejected")}
    yield _MORE_THAN_TEXT if None in sides.values() else _split(sides)


def _split(sides: Row) -> Row | str:
    from .formats import preference_prompt  # imports torch

    prompt = preference_prompt(sides)
    if not prompt:
        return "the sides share no prompt"
    return {"prompt": prompt, **{side: value[len(prompt) :] for side, value in sides.items()}}


_MORE_THAN_TEXT = "a message has more than a text"


def _messages(row: Row, column: str) -> list[Row] | None:
    """The messages of a column, each a role and a text; `None` if one has more, such as a call of a tool or an image,
    without which it is another."""
    messages, more = get_value(row, column, list), False
    for message in messages:
        if not is_message(message):
            raise ValueError(f"`{column}` has a message without `role` and `content`: {shorten(message)}.")
        if other_fields(message) or isinstance(message.get("content"), list):
            more = True
        else:
            get_value(message, "content")
    return None if more else [{"role": message["role"], "content": message["content"]} for message in messages]


def _qa_feedback(row: Row) -> Iterator[Row | str]:
    answer, feedback = get_value(row, "prediction 1"), get_value(row, "feedback", dict)
    spans = read_spans(get_value(feedback, "errors", list), answer)
    yield {
        "prompt": f"Question: {get_value(row, 'question').strip()}\nAnswer:",
        # The space is the answer's: tokens hold the one before their word.
        "chosen": " " + get_value(feedback, "corrected-prediction"),
        "rejected": " " + answer,
        "rejected_spans": [[start + 1, end + 1] for start, end in spans],
    }


def _paradetox(row: Row) -> Iterator[Row | str]:
    if "en_toxic_comment" in row:  # on the Hub, a row for each rewrite
        toxic, rewrites = get_value(row, "en_toxic_comment"), [row.get("en_neutral_comment")]
    else:
        toxic, rewrites = get_value(row, "toxic"), [row.get(f"neutral{i}") for i in (1, 2, 3)]
    rewrites = [rewrite for rewrite in rewrites if rewrite]
    if not rewrites:
        yield "a sentence without a rewrite"
    for i, rewrite in enumerate(rewrites):
        repeated = rewrite in rewrites[:i]
        yield "a rewrite given twice" if repeated else {"prompt": "", "chosen": rewrite, "rejected": toxic}


def _toxic_spans(row: Row) -> Iterator[Row | str]:
    text, listed = get_value(row, "text"), get_value(row, "spans", object)
    try:
        places = json.loads(listed) if isinstance(listed, str) else listed
    except json.JSONDecodeError as error:
        raise ValueError(f"`spans` is no list of characters: {error}.") from error
    if not isinstance(places, list) or any(type(place) is not int for place in places):
        raise ValueError(f"`spans` must be a list of the places of characters, but is {shorten(listed)}.")
    if wrong := [place for place in places if not 0 <= place < len(text)]:
        raise ValueError(f"`spans` has the place {wrong[0]}, but `text` has {len(text)} characters.")
    yield {"completion": text, "completion_spans": spans_of_places(places)}


def _stepwise(row: Row, **settings: Any) -> Iterator[Row | str]:
    yield stepwise_row(row, **settings)


def _prmbench(row: Row, **settings: Any) -> Iterator[Row | str]:
    yield from prmbench_rows(row, **settings)


def _columns(row: Row, names: Mapping[str, str]) -> Iterator[Row | str]:
    given = {name: get_value(row, column, object) for name, column in names.items()}
    messages = isinstance(given["chosen"], list)
    read = _messages if messages else get_value
    pair: Any = {name: read(row, names[name]) for name in ("prompt", "chosen", "rejected") if name in names}
    if None in pair.values():
        pair = _MORE_THAN_TEXT
    elif "prompt" not in pair:
        pair = _split(pair) if messages else {"prompt": "", **pair}
    if "spans" in names and not isinstance(pair, str):
        pair["rejected_spans"] = _marked(given["spans"], names["spans"], pair["rejected"])
    yield pair


def _marked(spans: Any, column: str, original: str | list[dict[str, str]]) -> list[Any] | None:
    """The wrong characters of an original; `None` for null and an empty cell, where nobody marked any."""
    if spans in (None, ""):
        return None
    if isinstance(spans, str):
        try:
            spans = json.loads(spans)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{column}` is no JSON: {error}.") from error
    if isinstance(original, list):
        if len(original) != 1:
            raise ValueError(f"spans count the characters of one message, but the original has {len(original)}.")
        original = original[0]["content"]
    return [_weighed(*both) for both in zip(read_spans(spans, original), spans, strict=True)]


def _weighed(place: list[int], span: Any) -> Any:
    """The place of a span, with its severity where it has one."""
    if not isinstance(span, dict) or span.get("severity") is None:
        return place
    return {"start": place[0], "end": place[1], "severity": read_severity(span)}


_CONVERT: dict[str, Callable[..., Iterator[Row | str]]] = {
    "hh-rlhf": _hh_rlhf,
    "ultrafeedback": _ultrafeedback,
    "qa-feedback": _qa_feedback,
    "paradetox": _paradetox,
    "toxic-spans": _toxic_spans,
    "stepwise": _stepwise,
    "prmbench": _prmbench,
}
