"""Prepares preference rows of every format: token ids with edit masks, and the rows to drop.

`chosen` is the edit, `rejected` the original. Every mask is 1 for what it names. A prepared row holds, for each side,
lists of one length:

- `{side}_ids`: the tokens of prompt and completion;
- `{side}_completion_mask`: 1 for the tokens of the completion, its EOS and whatever the chat template ends it with;
- `{side}_edit_mask`: 1 for the tokens that were edited in (`chosen`) or edited out (`rejected`);
- `{side}_anchor_mask`: 1 for the token that stands for a gap on this side (see [`EditAlignment`]).

A row of one side, whose wrong tokens are marked and that has no correction, has the columns of `rejected` alone; those
of `chosen` are `None` or not there. Rows with spans may also hold

- `rejected_token_weights`: how much each token weighs in the token loss: the severity of a wrong one, 0 for a token of
  the completion that nobody judged. `None` where all weigh 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..edits.alignment import EditAlignment, TokenizedText, align_ids, align_tokenized, blank_start, word_edit_ratio
from ..utils.code import code_hash
from ..utils.text import shorten
from .dropped import DroppedRows
from .formats import (
    SIDES,
    ColumnError,
    RenderedText,
    Row,
    RowFormat,
    check_column_names,
    check_row,
    check_unicode,
    conversational_texts,
    dialogue_texts,
    get_column,
    given_columns,
    plain_rows,
    row_format,
    row_sides,
    standard_texts,
)
from .spans import read_severity, read_spans, tokens_of_span, without_white_space
from .tokens import TextTokenizer
from .vocabulary import vocabulary_size


MASKS = ("completion_mask", "edit_mask", "anchor_mask")
PREPARED_COLUMNS = tuple(f"{side}_{part}" for part in ("ids", *MASKS) for side in SIDES)
WEIGHTS = "rejected_token_weights"
CHARACTERS = ("rejected_offsets", "rejected_characters")
RAW_COLUMNS = (
    *("prompt", *SIDES, "chosen_spans", "rejected_spans", "tools", "chat_template_kwargs"),
    *("completion", "completion_spans", "completion_judged"),
    *("chosen_attention_mask", "rejected_attention_mask"),
)


def completion_tokens(tokens: TokenizedText, text: RenderedText) -> tuple[int, range, TokenizedText]:
    """The first token of the completion, the places of the tokens of its own text, and these tokens with offsets into
    that text. A token across the border of prompt and completion is the completion's; tokens that the tokenizer added,
    which have the span `(0, 0)`, are the prompt's before it."""
    first = next((i for i, (_, end) in enumerate(tokens.offsets) if end > text.prompt_end), len(tokens.ids))
    offsets = [(blank_start(text.text, end) if start == end else start, end) for start, end in tokens.offsets[first:]]
    inside = [i for i, (start, end) in enumerate(offsets) if start < text.end and end > text.start]
    if not inside:
        return first, range(first, first), TokenizedText([], [])
    own, length = range(inside[0], inside[-1] + 1), text.end - text.start
    offsets = [(start - text.start, end - text.start) for start, end in offsets[own.start : own.stop]]
    offsets = [
        (start, end) if 0 <= start and end <= length else (min(max(start, 0), length), min(max(end, 0), length))
        for start, end in offsets
    ]
    places = range(first + own.start, first + own.stop)
    return first, places, TokenizedText(tokens.ids[places.start : places.stop], offsets)


class _Marks(NamedTuple):
    """What a row's own spans say of the tokens of one side: which are marked, and how much each weighs."""

    marked: list[bool]
    weights: list[float]
    judges_all: bool  # and not only the tokens of `completion_judged`


def _marks(row: Row, side: str, text: RenderedText, own: TokenizedText) -> _Marks:
    column = f"{side}_spans"
    words = text.text[text.start : text.end]
    if isinstance(row[side], list) and words != row[side][-1].get("content"):
        raise ColumnError(
            column,
            f"counts characters of `{side}`, which must be one message that the chat template renders as it is.",
        )
    spans = _read_spans(row, column, words)
    marked, weights = [False] * len(own.ids), [1.0] * len(own.ids)
    for span, given in zip(spans, row[column], strict=True):
        try:
            severity = read_severity(given)
        except ValueError as error:
            raise ColumnError(column, str(error)) from error
        if side == "chosen" and severity != 1:
            raise ColumnError(column, "a span has a `severity`, which is how wrong it is; of `chosen` nothing is.")
        for i in tokens_of_span(words, span, own.offsets):
            weights[i] = max(weights[i], severity) if marked[i] else severity
            marked[i] = True
    judges_all = side != "completion" or "completion_judged" not in row
    if not judges_all:
        parts = [set(tokens_of_span(words, part, own.offsets)) for part in _read_spans(row, "completion_judged", words)]
        if not (judged := set().union(*parts)):
            raise ColumnError("completion_judged", "covers no token, so nothing is learned. Leave the row out.")
        for start, end in spans:
            if judged.isdisjoint(tokens_of_span(words, (start, end), own.offsets)):
                raise ColumnError(column, f"the span [{start}, {end}) lies outside of `completion_judged`.")
        marked = [mark and i in judged for i, mark in enumerate(marked)]
        weights = [weight if i in judged else 0.0 for i, weight in enumerate(weights)]
    return _Marks(marked, weights, judges_all)


def _read_spans(row: Row, column: str, words: str) -> list[list[int]]:
    get_column(row, column, list, "a list of spans (`[]` where nothing is wrong; `None` in a pair that nobody marked)")
    try:
        return read_spans(row[column], words, "completion")
    except ValueError as error:
        raise ColumnError(column, str(error)) from error


def _scatter(mask: Sequence[bool], places: Sequence[int], length: int) -> list[int]:
    spread = [0] * length
    for place, value in zip(places, mask, strict=True):
        spread[place] = int(value)
    return spread


def _characters(row: Row, side: str, text: RenderedText, places: range, own: TokenizedText, length: int) -> Row:
    """The columns [`CHARACTERS`]: the characters of each token of the completion, without white space at their edges,
    with 1 for a token inside of a word, whose beginning is in the token before it; and the row's spans."""
    words, offsets = text.text[text.start : text.end], [[0, 0, 0]] * length
    for place, (start, end) in zip(places, own.offsets, strict=True):
        if words[start:end].strip():
            start, end = without_white_space(words, start, end)
            offsets[place] = [start, end, int(start > 0 and words[start - 1 : start + 1].isalnum())]
    return dict(zip(CHARACTERS, (offsets, _read_spans(row, f"{side}_spans", words)), strict=True))


def _text_row(row: Row, texts: dict[str, RenderedText], tokenize: TextTokenizer, rendered: bool) -> Row:
    tokens = {side: tokenize(text.text, rendered=rendered) for side, text in texts.items()}
    completions = {side: completion_tokens(tokens[side], text) for side, text in texts.items()}
    own = {side: completion[2] for side, completion in completions.items()}
    edits: dict[str, list[bool]] = {}
    anchors: dict[str, list[bool]] = {}
    if len(texts) == len(SIDES):
        words = {side: text.text[text.start : text.end] for side, text in texts.items()}
        alignment = align_tokenized(words["rejected"], words["chosen"], own["rejected"], own["chosen"])
        edits, anchors = _by_side(alignment)
    prepared: Row = dict.fromkeys((*PREPARED_COLUMNS, WEIGHTS, *CHARACTERS))
    for side, text in texts.items():
        length, (first, places, _) = len(tokens[side].ids), completions[side]
        if len(texts) == 1 or f"{side}_spans" in row:
            marks = _marks(row, side, text, own[side])
            edits[side] = marks.marked
            anchors[side] = [False] * len(own[side].ids)  # anchors belong to the alignment, which spans replace
            if side != "chosen" and marks.judges_all:
                prepared.update(_characters(row, side, text, places, own[side], length))
            if not marks.judges_all or any(weight != 1 for weight in marks.weights):
                around = float(marks.judges_all)
                before, after = [around] * places.start, [around] * (length - places.stop)
                prepared[WEIGHTS] = [*before, *marks.weights, *after]
        name = "chosen" if side == "chosen" else "rejected"
        prepared[f"{name}_ids"] = tokens[side].ids
        prepared[f"{name}_completion_mask"] = [0] * first + [1] * (length - first)
        prepared[f"{name}_edit_mask"] = _scatter(edits[side], places, length)
        prepared[f"{name}_anchor_mask"] = _scatter(anchors[side], places, length)
    return prepared


def _by_side(alignment: EditAlignment) -> tuple[dict[str, list[bool]], dict[str, list[bool]]]:
    edits = {"chosen": alignment.edited_mask, "rejected": alignment.original_mask}
    anchors = {"chosen": alignment.edited_anchors, "rejected": alignment.original_anchors}
    return edits, anchors


def complete_ids_row(row: Row, vocabulary: int | None = None) -> Row:
    """The prepared form of a row that has token ids.

    Masks that the row brings are checked and kept. Without completion masks every token counts as completion; without
    edit masks the completions are aligned with [`align_ids`]; edit masks without anchor masks have no anchors. Padding,
    where `chosen_attention_mask` and `rejected_attention_mask` are 0, is dropped from the ids and from these masks.

    A row of one side has `rejected_ids`, `rejected_edit_mask` (1 for what is wrong) and nothing chosen.

    Args:
        row (`dict[str, Any]`):
            `chosen_ids` and `rejected_ids`, and for both sides or neither each of the masks; optionally
            `rejected_token_weights`.
        vocabulary (`int`, *optional*):
            The ids must be below it.

    Raises:
        ValueError: If an id is none of the vocabulary, or if a mask is there for one side alone, has another length
            than its ids, has other values than 0 and 1, or counts a token outside the completion; or if the weights are
            no numbers from 0 on. The error names the column.
    """
    sides = row_sides(row)
    row = _without_padding(given_columns(row))
    for side in sides:
        if f"{side}_spans" in row:
            raise ColumnError(
                f"{side}_spans", f"counts characters, but the row has token ids: give `{side}_edit_mask` instead."
            )
    prepared: Row = dict.fromkeys((*PREPARED_COLUMNS, WEIGHTS))
    prepared.update({f"{side}_ids": read_ids(row, f"{side}_ids", vocabulary) for side in sides})
    if row.get(WEIGHTS) is not None:
        prepared[WEIGHTS] = _weights(row, len(prepared["rejected_ids"]))
    given = {name for name in MASKS for side in sides if f"{side}_{name}" in row}
    for name in MASKS:
        for side in sides:
            length = len(prepared[f"{side}_ids"])
            column = f"{side}_{name}"
            if name in given:
                prepared[column] = _mask(row, column, length)
            else:
                prepared[column] = [int(name == "completion_mask")] * length
            outside = zip(prepared[column], prepared[f"{side}_completion_mask"], strict=True)
            if any(counted > inside for counted, inside in outside):
                raise ColumnError(column, f"counts tokens that `{side}_completion_mask` does not.")
    if "edit_mask" in given:
        return prepared
    if "anchor_mask" in given:
        raise ColumnError("chosen_edit_mask", "is missing, while `chosen_anchor_mask` is there.")
    places = {side: [i for i, inside in enumerate(prepared[f"{side}_completion_mask"]) if inside] for side in SIDES}
    completions = {side: [prepared[f"{side}_ids"][i] for i in places[side]] for side in SIDES}
    edits, anchors = _by_side(align_ids(completions["rejected"], completions["chosen"]))
    for side in SIDES:
        length = len(prepared[f"{side}_ids"])
        prepared[f"{side}_edit_mask"] = _scatter(edits[side], places[side], length)
        prepared[f"{side}_anchor_mask"] = _scatter(anchors[side], places[side], length)
    return prepared


def _without_padding(row: Row) -> Row:
    row = dict(row)
    for side in SIDES:
        if row.get(f"{side}_attention_mask") is None:
            continue
        parts = ("ids", *(name for name in (*MASKS, "token_weights") if row.get(f"{side}_{name}") is not None))
        for column in (f"{side}_{part}" for part in parts):
            row[column] = without_padding(row, column, f"{side}_attention_mask")
    return row


def without_padding(row: Row, column: str, mask_column: str) -> list[Any]:
    """The entries of a column where an attention mask is 1."""
    values = get_column(row, column, list, "a list")
    return [value for value, real in zip(values, _mask(row, mask_column, len(values)), strict=True) if real]


def read_ids(row: Row, column: str, vocabulary: int | None = None) -> list[int]:
    """The token ids in a column.

    Raises:
        ValueError: If they are no list of ids, or not below `vocabulary`. The error names the column.
    """
    ids = get_column(row, column, list, "a list of token ids")
    if not ids:
        raise ColumnError(column, "has no tokens.")
    if any(type(i) is not int for i in ids):
        raise ColumnError(column, f"must be a list of integers, but is {shorten(ids)}.")
    if vocabulary is not None and not (0 <= min(ids) and max(ids) < vocabulary):
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise ColumnError(column, f"has the id {wrong}, but the tokenizer's are 0 to {vocabulary - 1}.")
    return ids


def _mask(row: Row, column: str, length: int) -> list[int]:
    mask = get_column(row, column, list, "a list of 0 and 1")
    if len(mask) != length:
        raise ColumnError(column, f"has {len(mask)} entries for {length} token ids.")
    if any(value not in (0, 1) for value in mask):
        raise ColumnError(column, f"must be a list of 0 and 1, but is {shorten(mask)}.")
    return [int(value) for value in mask]


def _weights(row: Row, length: int) -> list[float]:
    weights = get_column(row, WEIGHTS, list, "a list of numbers")
    if len(weights) != length:
        raise ColumnError(WEIGHTS, f"has {len(weights)} entries for {length} token ids.")
    if any(isinstance(w, bool) or not isinstance(w, (int, float)) or not 0 <= w < math.inf for w in weights):
        raise ColumnError(WEIGHTS, f"must be a list of finite numbers from 0 on, but is {shorten(weights)}.")
    return [float(weight) for weight in weights]


def prepared_features(columns: Sequence[str]) -> dict[str, Any]:
    """The features of columns of prepared rows: ids, masks and weights."""
    kinds = {WEIGHTS: "float32"}
    return {c: List(Value(kinds.get(c, "int64" if c.endswith("ids") else "int8"))) for c in columns}


def prepared_sides(row: Row) -> tuple[str, ...]:
    """The sides of a prepared row: [`SIDES`], or `("rejected",)`."""
    return SIDES if row.get("chosen_ids") is not None else ("rejected",)


@dataclass
class RowPreparer:
    """Turns rows into prepared rows (see this module's head).

    The whole text is tokenized at once, as [`~trl.RewardTrainer`] does it: texts get an EOS at their end if they have
    none, messages get the chat template. Then the completions are aligned with [`align_tokenized`]. In a row with
    `rejected_spans` or `chosen_spans`, `[start, end)` pairs or dictionaries with `start` and `end` that count
    characters of that side's completion, the tokens which overlap them are that side's edited tokens instead. A row of
    one side, `completion` with `completion_spans` (or `rejected` with `rejected_spans`), has no other edited tokens.

    A span with a `severity`, a positive number, weighs its tokens in the token loss. With `completion_judged`, spans of
    characters too, only the tokens that overlap one of those are labelled, right or wrong.

    Args:
        format (`str`, *optional*):
            [`row_format`] of the first pair. The other pairs must have the same. `None` takes each pair as it is. Rows
            of one side are always taken as they are.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer. For `"ids"` it says which ids there are.
        name (`str`, *optional*, defaults to `"train"`):
            What errors call the data set.
    """

    format: RowFormat | None
    tokenizer: PreTrainedTokenizerBase
    name: str = "train"

    def __post_init__(self):
        if self.format is not None:
            self._check_tokenizer(self.format)

    @cached_property
    def _vocabulary(self) -> int:
        return vocabulary_size(self.tokenizer)

    @cached_property
    def _tokenize(self) -> TextTokenizer:
        return TextTokenizer(self.tokenizer)

    def _check_tokenizer(self, format: RowFormat) -> None:
        if format == "ids":
            return
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"Edits are projected to tokens through character offsets, which {type(self.tokenizer).__name__} does "
                "not give. Use a fast tokenizer, or prepare `chosen_ids` and `rejected_ids` yourself."
            )
        if format != "conversational" and self.tokenizer.eos_token is None:
            raise ValueError("The tokenizer has no EOS token to end the texts with. Set `eos_token`.")

    def __call__(self, row: Row, index: int) -> Row:
        return self._read(row, index)[0]

    def with_edit_ratio(self, row: Row, index: int) -> tuple[Row, float]:
        """The prepared row and its edit ratio: [`~edits.alignment.word_edit_ratio`] of the completions, by the row's
        spans where it has them. A row that has only token ids has no words: there it is the share of edited tokens
        among the tokens of both completion masks. A row of one side is no edit, and its ratio 0."""
        prepared, texts = self._read(row, index)
        if prepared["chosen_ids"] is None:
            return prepared, 0.0
        if texts is None:
            return prepared, _token_edit_ratio(prepared)
        words, row = {side: text.text[text.start : text.end] for side, text in texts.items()}, given_columns(row)
        spans = {
            side: read_spans(row[f"{side}_spans"], words[side]) if f"{side}_spans" in row else None for side in SIDES
        }
        return prepared, word_edit_ratio(words["rejected"], words["chosen"], spans["rejected"], spans["chosen"])

    def _read(self, row: Row, index: int) -> tuple[Row, dict[str, RenderedText] | None]:
        try:
            check_row(row)
            return self._prepare(row)
        except ValueError as error:
            raise ValueError(f"Row {index}{_worker()} of the {self.name} data set, {error}") from error

    def _prepare(self, row: Row) -> tuple[Row, dict[str, RenderedText] | None]:
        texts = None
        check_unicode(row)
        check_column_names(row)
        is_pair = len(row_sides(row)) == len(SIDES)
        row = given_columns(row)
        format = self.format
        if format is None or not is_pair:
            format = row_format(row)
            self._check_tokenizer(format)
        if format == "ids":
            prepared = complete_ids_row(row, self._vocabulary)
        elif format == "conversational":
            texts = conversational_texts(row, self.tokenizer)
            prepared = _text_row(row, texts, self._tokenize, rendered=True)
        else:
            split = dialogue_texts if format == "dialogue" else standard_texts
            texts = split(row, self.tokenizer.eos_token)
            prepared = _text_row(row, texts, self._tokenize, rendered=False)
        if "margin" in row:
            margin = row["margin"]
            if not is_pair:
                raise ColumnError("margin", "is of the two sides of a row, and this row has one.")
            if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
                raise ColumnError("margin", f"must be a number, but is {shorten(margin)}.")
            prepared["margin"] = float(margin)
        return prepared, texts


def _worker() -> str:
    info = torch.utils.data.get_worker_info()
    return "" if info is None else f" (counted in the part of data loader worker {info.id})"


def _token_edit_ratio(row: Row) -> float:
    edited, tokens = (sum(sum(row[f"{side}_{name}"]) for side in SIDES) for name in ("edit_mask", "completion_mask"))
    return edited / tokens if tokens else 0.0


def row_outcome(
    row: Row, edit_ratio: float = 0.0, max_length: int | None = None, max_edit_ratio: float | None = None
) -> str:
    """`"kept"`, or why a prepared row is dropped. The reasons, of which the first that applies counts:

    - `"identical"`: both sides are the same and no token is marked;
    - `"too_long"`: a side has more than `max_length` tokens;
    - `"not_minimal"`: `edit_ratio` (see [`RowPreparer.with_edit_ratio`]) is above `max_edit_ratio`.

    A row of one side can only be too long.
    """
    sides = prepared_sides(row)
    if len({tuple(row[f"{side}_ids"]) for side in sides}) < len(sides) and not any(
        any(row[f"{side}_edit_mask"]) for side in sides
    ):
        return "identical"
    if max_length is not None and max(len(row[f"{side}_ids"]) for side in sides) > max_length:
        return "too_long"
    if max_edit_ratio is not None and edit_ratio > max_edit_ratio:
        return "not_minimal"
    return "kept"


@dataclass
class _PrepareAndJudge:
    """A prepared row with its outcome in a column of its own."""

    prepare: RowPreparer
    max_length: int | None
    max_edit_ratio: float | None
    columns: list[str]
    code: str = field(default_factory=code_hash)

    def __call__(self, row: Row, index: int) -> Row:
        if self.max_edit_ratio is None:  # the words of long texts need not be aligned
            prepared, ratio = self.prepare(row, index), 0.0
        else:
            prepared, ratio = self.prepare.with_edit_ratio(row, index)
        outcome = row_outcome(prepared, ratio, self.max_length, self.max_edit_ratio)
        return {**{column: prepared.get(column) for column in self.columns}, "outcome": outcome}


@dataclass
class _KeepAndCount:
    dropped: DroppedRows

    def __call__(self, row: Row) -> bool:
        self.dropped.add(row["outcome"])
        return row["outcome"] == "kept"


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    max_edit_ratio: float | None = None,
    num_proc: int | None = None,
    num_workers: int = 0,
    name: str = "train",
    with_characters: bool = False,
) -> tuple[Dataset | IterableDataset, DroppedRows]:
    """Prepares a data set for training on tokens: preference pairs, rows of one side with marked spans, or both.

    The formats of pairs, of which the first row decides for all unless it has one side:

    - TRL's preference format, texts or messages, with a `prompt` or with the prompt inside both sides. Messages that
      both sides begin with are their prompt. Texts without a `prompt` have none: a beginning that both share is
      unchanged text, not a prompt;
    - HH-RLHF's whole dialogues. The prompt is everything up to the last `"\\n\\nAssistant:"` that both sides share;
    - tokenized rows, `chosen_ids` and `rejected_ids`, and any masks (see [`complete_ids_row`]). So a prepared data set
      passes as it is.

    Texts and messages may come with spans of what is wrong (see [`RowPreparer`]), and all with a `margin`. Where a row
    lacks what others have, the column is `None`. A pair that lacks a `margin` has one of 0.

    A row of one side has what somebody marked in it and no correction: `completion` (a text or messages), optionally
    `prompt`, and `completion_spans`, `[start, end)` characters of the completion, or dictionaries with `start`, `end`
    and optionally `severity`; an empty list where all is right. With `completion_judged`, more such spans, the tokens
    outside of them have no label. `rejected` with `rejected_spans` and without `chosen` is the same. Of messages
    without a `prompt`, all but the last are the prompt. As token ids such a row is `rejected_ids` with
    `rejected_edit_mask`.

    The rows of a data set with a transform (`with_transform`) are what the transform gives, and its other columns are
    not kept.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            The rows.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        max_length (`int`, *optional*):
            Rows with a longer side, in tokens, are dropped.
        max_edit_ratio (`float`, *optional*):
            Rows with a higher edit ratio are dropped, see [`RowPreparer.with_edit_ratio`].
        num_proc (`int`, *optional*):
            Processes that prepare a `Dataset`. A stream is prepared where it is read.
        num_workers (`int`, *optional*, defaults to `0`):
            Data loader workers that will read a stream, each of which counts for itself.
        name (`str`, *optional*, defaults to `"train"`):
            What errors and progress bars call the data set.
        with_characters (`bool`, *optional*, defaults to `False`):
            If `True`, rows with spans of all their wrong characters keep these as `rejected_characters`, and as
            `rejected_offsets` what [`~reward_model.character_scores.marked_text`] needs of each token. Both are `None`
            in other rows.

    Returns:
        `tuple[Dataset | IterableDataset, DroppedRows]`: the rows that are kept, and the counts. Those of a stream are 0
        at first and grow as it is read.

    Raises:
        ValueError: If a row does not have the format of the first (naming row and column), or if nothing is left.
    """
    dataset = plain_rows(dataset, name)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"The {name} data set has no rows.")
    transformed = isinstance(dataset, Dataset) and dataset.format["type"] is not None
    for side in SIDES:  # the names of the columns in TRL before 1.0, which TRL still takes
        if f"{side}_input_ids" in first and f"{side}_ids" not in first:
            dataset = dataset.rename_column(f"{side}_input_ids", f"{side}_ids")
            first[f"{side}_ids"] = first.pop(f"{side}_input_ids")
    try:
        is_pair, format = len(row_sides(first)) == len(SIDES), row_format(given_columns(first))
        preparer = RowPreparer(format if is_pair else None, tokenizer, name)
    except ValueError as error:
        raise ValueError(f"Row 0 of the {name} data set, {error}") from error

    # A stream of unknown columns may have others in a later row.
    known, all_columns = dataset.features is not None, (*RAW_COLUMNS, *PREPARED_COLUMNS, WEIGHTS, "margin")
    replaced = [column for column in all_columns if column in first or not known]
    columns = list(PREPARED_COLUMNS)
    if known and not {"chosen", "chosen_ids"} & first.keys():
        columns = [column for column in columns if column.startswith("rejected")]
    if not known or {"completion", "rejected_spans", WEIGHTS} & first.keys():
        columns.append(WEIGHTS)
    if transformed:  # its columns are not those of its rows
        replaced = dataset.column_names
    features = None  # a stream may not know its own
    if dataset.features is not None:
        features = Features({column: kind for column, kind in dataset.features.items() if column not in replaced})
        features.update(prepared_features(columns))
        if "margin" in first:
            features["margin"] = Value("float64")
        features["outcome"] = Value("string")
        if with_characters:
            features.update(dict.fromkeys(CHARACTERS, List(List(Value("int64")))))
    columns += ["margin"] if not known or "margin" in first else []
    columns += CHARACTERS if with_characters else ()
    judge = _PrepareAndJudge(preparer, max_length, max_edit_ratio, columns)
    dropped = DroppedRows(num_workers=num_workers)

    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(judge, with_indices=True, remove_columns=replaced, features=features)
        return dataset.filter(_KeepAndCount(dropped)).remove_columns("outcome"), dropped

    dataset = dataset.map(
        judge,
        with_indices=True,
        remove_columns=replaced,
        features=features,
        num_proc=num_proc,
        desc=f"Aligning the edits of the {name} data set",
    )
    dataset = dataset.with_format(None)  # a transform has been applied
    outcomes = dataset["outcome"][:]
    dataset = dataset.remove_columns("outcome")
    for outcome in dropped.outcomes:
        dropped.add(outcome, outcomes.count(outcome))
    dropped.require_rows(name)
    if dropped.counts()["kept"] < len(dataset):
        dataset = dataset.select([i for i, outcome in enumerate(outcomes) if outcome == "kept"])
    return dataset, dropped
