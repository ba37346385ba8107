"""What the edits of a data set are like: how many, how large, of which kinds, and how they read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..data.dropped import DroppedRows
from ..data.formats import SIDES, get_messages, given_columns, plain_rows, preference_prompt, row_format, row_sides
from ..data.preprocessing import RowPreparer, row_outcome
from ..data.spans import read_spans
from ..edits.alignment import EditAlignment, align_edits, align_words, word_edit_ratio
from ..edits.diff import Piece, diff_pieces
from ..utils.messages import message_text, messages_text, other_fields
from ..utils.text import shorten, visible
from ..utils.validation import check_least_if_given, check_share


QUANTILES = {"least": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "greatest": 1.0}
KINDS = ("replace", "delete", "insert", "white space")
OUTCOME_NAMES = {"kept": "kept", "identical": "identical", "too_long": "too long", "not_minimal": "not minimal"}


@dataclass(frozen=True)
class InspectedRow:
    """One row: its place in the data set, its [`~data.preprocessing.row_outcome`], and its edit ratio."""

    index: int
    outcome: str
    ratio: float


class _Texts(NamedTuple):
    prompt: str
    original: str
    edited: str
    spans: dict[str, list[list[int]] | None]  # of each side; `None` where the row has none


@dataclass(frozen=True)
class Inspection:
    """Figures on the edits of a data set, see [`inspect_dataset`].

    Args:
        unit (`"words"` or `"tokens"`):
            What is aligned for the kinds of edits and the diffs. Edit ratios always count words.
        counts (`dict[str, int]`):
            [`~data.dropped.DroppedRows`]'s counts: `"rows"`, `"kept"`, and the rows dropped by reason.
        without_edits (`int`):
            Rows that are kept, but without an edited word or token on either side.
        rows (`list[InspectedRow]`):
            All rows, in order.
        kinds (`dict[str, int]`):
            The number of edits of each kind: `"replace"`, `"delete"`, `"insert"`, and `"white space"` for those that
            change no token: of white space alone, or of spellings that the tokenizer does not tell apart.
    """

    unit: Literal["words", "tokens"]
    counts: dict[str, int]
    without_edits: int
    rows: list[InspectedRow]
    kinds: dict[str, int]
    dataset: Dataset = field(repr=False)
    tokenizer: PreTrainedTokenizerBase | None = field(repr=False)

    @property
    def ratios(self) -> np.ndarray:
        """The edit ratios of the rows that are not identical, (R,)."""
        return np.array([row.ratio for row in self.rows if row.outcome != "identical"])

    def worst(self, number: int = 10) -> list[InspectedRow]:
        """The rows with the highest edit ratios, the highest first, of equal ones the first rows."""
        changed = [row for row in self.rows if row.outcome != "identical"]
        return sorted(changed, key=lambda row: (-row.ratio, row.index))[:number]

    def diff(self, index: int) -> tuple[str, list[Piece]]:
        """The prompt of a row, and its edit as pieces."""
        texts = _texts(self.dataset[index], index)
        return texts.prompt, diff_pieces(
            texts.original, texts.edited, _align(texts, self.tokenizer), texts.spans["rejected"] or ()
        )

    def summary(self) -> dict[str, list[tuple[str, ...]]]:
        """The figures as tables: a title, and rows of a name and one or two cells."""
        counts: list[tuple[str, ...]] = [("rows", str(self.counts["rows"]))]
        counts += [(OUTCOME_NAMES[name], str(self.counts[name])) for name in DroppedRows().outcomes]
        counts.append(("kept, but without an edit", str(self.without_edits)))
        tables: dict[str, list[tuple[str, ...]]] = {"rows": counts}
        if len(self.ratios):
            ratios = np.quantile(self.ratios, list(QUANTILES.values()))
            name = "edit ratio, in words, of the rows that are not identical"
            tables[name] = [(name, f"{ratio:.3f}") for name, ratio in zip(QUANTILES, ratios, strict=True)]
            bins, edges = np.histogram(self.ratios, bins=10, range=(0.0, 1.0))
            tables["rows by edit ratio"] = [
                (f"{low:.1f} to {high:.1f}", str(count), _bar(count / bins.max()))
                for count, (low, high) in zip(bins, pairwise(edges), strict=True)
            ]
        edits = sum(self.kinds.values())
        tables["edits by kind"] = [
            (kind, str(self.kinds[kind]), f"{self.kinds[kind] / edits:.1%}" if edits else "–") for kind in KINDS
        ]
        return tables


def inspect_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_length: int | None = None,
    max_edit_ratio: float | None = None,
) -> Inspection:
    """Looks at the edits of preference pairs.

    The edit ratio of a row is [`~edits.alignment.word_edit_ratio`] of its completions; on a side with spans, these are
    the edit. With a tokenizer, rows are dropped as [`~data.preprocessing.prepare_dataset`] drops them. Kinds of edits
    and diffs are always those of the alignment of the texts, spans or not.

    Args:
        dataset (`Dataset`):
            Texts, messages or whole dialogues, in any of the formats of [`~data.preprocessing.prepare_dataset`] but
            token ids.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            A fast tokenizer. Without one, kinds of edits and diffs are those of words.
        max_length (`int`, *optional*):
            Rows with a longer side, in tokens, count as dropped. Needs a tokenizer.
        max_edit_ratio (`float`, *optional*):
            Rows with a higher edit ratio count as dropped.

    Raises:
        ValueError: If there are no rows, a row is malformed (the error names it), or `max_length` comes without a
            tokenizer.
    """
    check_share(max_edit_ratio=max_edit_ratio)
    check_least_if_given(max_length=(max_length, 1))
    if max_length is not None and tokenizer is None:
        raise ValueError("`max_length` counts tokens, so it needs a tokenizer.")
    dataset = plain_rows(dataset, "inspected")
    if not len(dataset):
        raise ValueError("The data set has no rows.")
    dropped, rows, kinds, without_edits, prepare = DroppedRows(), [], Counter(dict.fromkeys(KINDS, 0)), 0, None
    for index, row in enumerate(dataset):
        texts = _texts(row, index)
        alignment = _align(texts, tokenizer)
        if tokenizer is not None:
            prepare = prepare or RowPreparer(row_format(given_columns(row)), tokenizer, "inspected")
            prepared, ratio = prepare.with_edit_ratio(row, index)
            outcome = row_outcome(prepared, ratio, max_length, max_edit_ratio)
            edited = any(any(prepared[f"{side}_edit_mask"]) for side in SIDES)
        else:
            ratio = word_edit_ratio(texts.original, texts.edited, texts.spans["rejected"], texts.spans["chosen"])
            edited = ratio > 0
            identical = texts.original == texts.edited and not any(texts.spans.values())
            not_minimal = max_edit_ratio is not None and ratio > max_edit_ratio
            outcome = "identical" if identical else "not_minimal" if not_minimal else "kept"
        dropped.add(outcome)
        rows.append(InspectedRow(index, outcome, ratio))
        without_edits += outcome == "kept" and not edited
        for operation in alignment.operations:
            changed = any(start < end for start, end in (operation.original_tokens, operation.edited_tokens))
            kinds[operation.kind if changed else "white space"] += 1
    unit: Literal["words", "tokens"] = "words" if tokenizer is None else "tokens"
    return Inspection(unit, dropped.counts(), without_edits, rows, dict(kinds), dataset, tokenizer)


def _texts(row: dict[str, Any], index: int) -> _Texts:
    try:
        row = given_columns(row)
        if all(f"{side}_ids" in row for side in SIDES):
            raise ValueError("has token ids, and there is no text to show: inspect the data set before it is prepared.")
        if len(row_sides(row)) == 1:
            raise ValueError("has one side, and so no edit to inspect: `trl-tokenreward score` shows its marks.")
        names = [name for name in ("prompt", *SIDES) if name in row or name in SIDES]
        row_format(row)  # says what is missing
        kinds = {name: type(row.get(name)).__name__ for name in names}
        if set(kinds.values()) not in ({"str"}, {"list"}):
            raise ValueError(f"the columns must all be texts, or all lists of messages, but are {kinds}.")
        prompt = preference_prompt(row)
        skip = 0 if "prompt" in row else len(prompt)
        chosen, rejected = (row[side][skip:] for side in SIDES)
        if isinstance(prompt, list):
            for name in names:
                get_messages(row, name)
            prompt = messages_text(prompt)
            chosen, rejected = (_completion_text(side) for side in (chosen, rejected))
        spans = {
            side: read_spans(row[f"{side}_spans"], text, name) if f"{side}_spans" in row else None
            for side, text, name in (("rejected", rejected, "original"), ("chosen", chosen, "edit"))
        }
        return _Texts(prompt, rejected, chosen, spans)
    except ValueError as error:
        raise ValueError(f"Row {index} of the inspected data set: {error}") from error


def _completion_text(messages: list[dict[str, Any]]) -> str:
    if len(messages) != 1:
        return messages_text(messages)
    [message] = messages
    if message.get("content") is None and not other_fields(message):
        raise ValueError(f"a completion needs `content`, but one is {shorten(message)}.")
    return message_text(message)


def _align(texts: _Texts, tokenizer: PreTrainedTokenizerBase | None) -> EditAlignment:
    if tokenizer is None:
        return align_words(texts.original, texts.edited)
    return align_edits(texts.original, texts.edited, tokenizer)


def _bar(share: float) -> str:
    return "█" * round(30 * share) or ("▏" if share else "")


def print_inspection(inspection: Inspection, title: str, worst: int = 10, console: Console | None = None) -> None:
    """Prints the figures and the least minimal edits, `[-deleted-]` and `{+inserted+}`.

    Args:
        inspection ([`Inspection`]):
            What to print.
        title (`str`):
            What was inspected.
        worst (`int`, *optional*, defaults to `10`):
            How many rows to print.
        console (`rich.console.Console`, *optional*):
            Where to print.
    """
    console = console or Console()
    console.print(Text(visible(title), style="bold"), "", sep="\n")
    for name, rows in inspection.summary().items():
        table = Table(box=None, show_header=False)
        for i in range(max(map(len, rows))):
            table.add_column(justify="right" if i == 1 else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(Text(name, style="bold"), table, "", sep="\n")
    for inspected in inspection.worst(worst):
        head = f"Row {inspected.index}, edit ratio {inspected.ratio:.3f}, {OUTCOME_NAMES[inspected.outcome]}: "
        console.print(Text(head, style="bold") + _diff_text(inspection.diff(inspected.index)[1]), "", sep="\n")


def _diff_text(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for kind, group in groupby(pieces, key=lambda piece: piece.kind):  # pieces may end where a mark does
        words = visible("".join(piece.text for piece in group)).replace("\n", "↵")
        most = 80 if kind == "keep" else 400
        if len(words) > most:
            words = f"{words[: most // 2]} … {words[-most // 2 :]}"
        if kind == "delete":
            text.append(f"[-{words}-]", style="strike dark_orange")
        elif kind == "insert":
            text.append(f"{{+{words}+}}", style="underline blue")
        else:
            text.append(words)
    return text
