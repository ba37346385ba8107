"""Importers: data sets of other formats → the columns of [`TokenRewardTrainer`]: `prompt`, `chosen` (the edit),
`rejected` (the original) and, if the wrong characters are known, `rejected_spans`; or, of what was marked and not
edited, `completion` and `completion_spans`.

Heavy imports happen inside functions, because the command line reads the names of the formats from here.
"""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.text import shorten
from .spans import read_spans, spans_of_places


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table


Row = dict[str, Any]

FORMATS = {
    "hh-rlhf": "pairs of whole dialogues",
    "ultrafeedback": "pairs of conversations, with the prompt as a text beside them (binarized)",
    "qa-feedback": "answers with the characters that are wrong, and their corrections",
    "paradetox": "toxic sentences with up to three neutral rewrites (TSV, or the columns on the Hub)",
    "toxic-spans": "posts with the characters that are toxic, and no correction (SemEval-2021 task 5, CSV)",
    "stepwise": "TRL's stepwise supervision, which has no edits and is refused",
    "columns": "any two columns, and optionally a prompt and spans",
}
NAMES = {
    "prompt": "prompt (default: none; of messages, those that both sides begin with)",
    "chosen": "edit",
    "rejected": "original",
    "spans": "spans of the original that are wrong: [[start, end], ...], in CSV as JSON",
}

NO_EDITS = (
    "stepwise supervision says which steps of a completion are wrong, but holds no edit of it, and a token reward "
    "model learns from pairs. The same text cannot stand on both sides: the wrong steps, marked in `rejected`, would "
    "count as right in `chosen`, where nothing is marked. Have the completions edited, with each wrong step as a span "
    "[start, end) of its characters, and import them with the format 'columns'."
)


class Imported(NamedTuple):
    """A data set that was imported.

    Args:
        dataset (`Dataset`):
            The pairs, or rows of one side.
        counts (`dict[str, int]`):
            `"rows"` read, those `"kept"`, and what was dropped by reason. A row may have several pairs, or lack one.
    """

    dataset: "Dataset"
    counts: dict[str, int]

    def table(self) -> "Table":
        """The counts, for rich to print."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        kept = "pairs kept" if "chosen" in self.dataset.column_names else "rows kept"
        names = {"rows": "rows read", "kept": kept}
        for name, count in self.counts.items():
            table.add_row(Text(names.get(name, f"dropped: {name}")), str(count))
        return table


def import_dataset(
    format: str,
    source: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
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
    - `"toxic-spans"`: `text`, and `spans`, the places of its toxic characters as a list (`"[8, 9, 10]"`; `"[]"` where
      nothing is toxic). They become rows of one side, `completion` and `completion_spans`.
    - `"stepwise"`: refused; the error says why.
    - `"columns"`: the columns that `columns` names, texts or messages. Texts without a prompt have none; of messages it
      is those that both sides begin with. In CSV all values are texts, and spans are JSON.

    Pairs whose sides are the same, and rows with an empty side, are dropped and counted.

    Args:
        format (`str`):
            One of the above.
        source (`str` or `Path`):
            A file (JSON, JSON Lines, CSV, TSV or Parquet, compressed or not), a folder, or a name on the Hub, as in
            [`~utils.loading.load_split`].
        split (`str`, *optional*, defaults to `"train"`), config (`str`, *optional*):
            As in [`~utils.loading.load_split`].
        columns (`Mapping[str, str]`, *optional*):
            For `"columns"` alone: the columns that are the `"chosen"`, the `"rejected"`, and optionally the `"prompt"`
            and the `"spans"`. Spans are `[start, end)` characters of the original.

    Returns:
        [`Imported`]: the pairs, and what became of the rows. `rejected_spans` are lists of `[start, end]`.

    Raises:
        ValueError: If the format or a column is unknown, a row is malformed (the error names it, counted from 0), or no
            pair is left.
    """
    from datasets import Dataset, Features, List, Value

    if format not in FORMATS:
        raise ValueError(f"The format must be one of {list(FORMATS)}, but is {format!r}.")
    columns = dict(columns or {})
    if format == "stepwise":
        raise ValueError(NO_EDITS)
    if format == "columns":
        if not {"chosen", "rejected"} <= columns.keys() <= NAMES.keys():
            raise ValueError(
                f"The format 'columns' needs the columns `chosen` and `rejected`, and may have `prompt` and `spans`; "
                f"given are {sorted(columns)}. On the command line: --chosen COLUMN --rejected COLUMN."
            )
    elif columns:
        raise ValueError(f"The format {format!r} has columns of its own: {sorted(columns)} are for 'columns' alone.")

    convert = partial(_columns, names=columns) if format == "columns" else _CONVERT[format]
    counts: Counter[str] = Counter(rows=0, kept=0)
    pairs: list[Row] = []
    for index, row in enumerate(_read(source, split, config)):
        counts["rows"] += 1
        try:
            for pair in convert(row):
                reason = pair if isinstance(pair, str) else _nothing_to_learn(pair)
                counts[reason or "kept"] += 1
                if reason is None and not isinstance(pair, str):
                    pairs.append(pair)
        except ValueError as error:
            raise ValueError(f"Row {index} of {source}: {error}") from error
    if not pairs:
        dropped = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(f"No pair is left of {source} ({dropped}).")

    messages = List({"role": Value("string"), "content": Value("string")})
    kinds: dict[str, Any] = {}
    for name in [name for name in ("prompt", "chosen", "rejected", "completion") if name in pairs[0]]:
        types = {type(pair[name]) for pair in pairs}
        if len(types) > 1:
            raise ValueError(f"`{name}` is a text in some rows of {source} and a list of messages in others.")
        kinds[name] = messages if types == {list} else Value("string")
    for column in ("rejected_spans", "completion_spans"):
        if column in pairs[0]:
            kinds[column] = List(List(Value("int64")))
    return Imported(Dataset.from_list(pairs, features=Features(kinds)), dict(counts))


def _nothing_to_learn(pair: Row) -> str | None:
    """The reason to drop a pair or a row of one side, or `None`."""
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


def _read(source: str | Path, split: str, config: str | None) -> Iterable[Row]:
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
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
        index = -1
        try:
            for index, row in enumerate(csv.DictReader(file, **dialect)):
                if None in row:  # a row may lack its last columns
                    raise ValueError(f"Row {index} of {path}: has more fields than the header.")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"Row {index + 1} of {path}: {error}.") from error


def _get(row: Row, column: str, kind: type = str) -> Any:
    if column not in row:
        raise ValueError(f"has no `{column}`, only {sorted(row)}.")
    if not isinstance(row[column], kind):
        names: dict[type, str] = {str: "a text", list: "a list", dict: "a dictionary"}
        raise ValueError(f"`{column}` must be {names[kind]}, but is {shorten(row[column])}.")
    return row[column]


# One function for each format: it returns pairs or rows of one side, or the reason to drop the row.


def _hh_rlhf(row: Row) -> Iterator[Row | str]:
    yield _split({side: _get(row, side) for side in ("chosen", "rejected")})


def _ultrafeedback(row: Row) -> Iterator[Row | str]:
    yield _split({side: _messages(row, side) for side in ("chosen", "rejected")})


def _split(sides: Row) -> Row | str:
    from .formats import preference_prompt  # imports torch

    prompt = preference_prompt(sides)
    if not prompt:
        return "the sides share no prompt"
    return {"prompt": prompt, **{side: value[len(prompt) :] for side, value in sides.items()}}


def _messages(row: Row, column: str) -> list[Row]:
    messages = _get(row, column, list)
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"`{column}` has a message without `role` and `content`: {shorten(message)}.")
        _get(message, "content")
    # Messages may have more fields on one side than on the other, empty ones.
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _qa_feedback(row: Row) -> Iterator[Row | str]:
    answer, feedback = _get(row, "prediction 1"), _get(row, "feedback", dict)
    spans = read_spans(_get(feedback, "errors", list), answer)
    yield {
        "prompt": f"Question: {_get(row, 'question').strip()}\nAnswer:",
        # The space is the answer's: tokens hold the one before their word.
        "chosen": " " + _get(feedback, "corrected-prediction"),
        "rejected": " " + answer,
        "rejected_spans": [[start + 1, end + 1] for start, end in spans],
    }


def _paradetox(row: Row) -> Iterator[Row | str]:
    if "en_toxic_comment" in row:  # on the Hub, a row for each rewrite
        toxic, rewrites = _get(row, "en_toxic_comment"), [row.get("en_neutral_comment")]
    else:
        toxic, rewrites = _get(row, "toxic"), [row.get(f"neutral{i}") for i in (1, 2, 3)]
    rewrites = [rewrite for rewrite in rewrites if rewrite]
    if not rewrites:
        yield "a sentence without a rewrite"
    for i, rewrite in enumerate(rewrites):
        repeated = rewrite in rewrites[:i]
        yield "a rewrite given twice" if repeated else {"prompt": "", "chosen": rewrite, "rejected": toxic}


def _toxic_spans(row: Row) -> Iterator[Row | str]:
    text, listed = _get(row, "text"), _get(row, "spans", object)
    try:
        places = json.loads(listed) if isinstance(listed, str) else listed
    except json.JSONDecodeError as error:
        raise ValueError(f"`spans` is no list of characters: {error}.") from error
    if not isinstance(places, list) or any(type(place) is not int for place in places):
        raise ValueError(f"`spans` must be a list of the places of characters, but is {shorten(listed)}.")
    if wrong := [place for place in places if not 0 <= place < len(text)]:
        raise ValueError(f"`spans` has the place {wrong[0]}, but `text` has {len(text)} characters.")
    yield {"completion": text, "completion_spans": spans_of_places(places)}


def _columns(row: Row, names: Mapping[str, str]) -> Iterator[Row | str]:
    given = {name: _get(row, column, object) for name, column in names.items()}
    messages = isinstance(given["chosen"], list)
    read = _messages if messages else _get
    pair: Any = {name: read(row, names[name]) for name in ("prompt", "chosen", "rejected") if name in names}
    if "prompt" not in pair:
        pair = _split(pair) if messages else {"prompt": "", **pair}
    if "spans" in names and not isinstance(pair, str):
        spans, original = given["spans"], pair["rejected"]
        if isinstance(spans, str):
            try:
                spans = json.loads(spans)
            except json.JSONDecodeError as error:
                raise ValueError(f"`{names['spans']}` is no JSON: {error}.") from error
        if messages and len(original) != 1:
            raise ValueError(f"spans count the characters of one message, but the original has {len(original)}.")
        pair["rejected_spans"] = read_spans(spans, original[0]["content"] if messages else original)
    yield pair


_CONVERT: dict[str, Callable[[Row], Iterator[Row | str]]] = {
    "hh-rlhf": _hh_rlhf,
    "ultrafeedback": _ultrafeedback,
    "qa-feedback": _qa_feedback,
    "paradetox": _paradetox,
    "toxic-spans": _toxic_spans,
}
