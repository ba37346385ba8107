"""Preference rows of every format → token ids with edit masks → padded batches.

`chosen` is the edit, `rejected` the original. Every mask is 1 for what it names. A prepared row holds, for each side,
lists of one length:

- `{side}_ids`: the tokens of prompt and completion;
- `{side}_completion_mask`: 1 for the tokens of the completion, its EOS and whatever the chat template ends it with;
- `{side}_edit_mask`: 1 for the tokens that were edited in (`chosen`) or edited out (`rejected`);
- `{side}_anchor_mask`: 1 for the token that stands for a gap on this side (see [`EditAlignment`]).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any, Literal, NamedTuple

import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import DataCollatorMixin

from .._trl import pad
from ..edits.alignment import EditAlignment, TokenizedText, align_ids, align_tokenized


Row = dict[str, Any]
RowFormat = Literal["ids", "conversational", "dialogue", "standard"]

SIDES = ("chosen", "rejected")
MASKS = ("completion_mask", "edit_mask", "anchor_mask")
PREPARED_COLUMNS = tuple(f"{side}_{part}" for part in ("ids", *MASKS) for side in SIDES)
RAW_COLUMNS = ("prompt", *SIDES, "chosen_spans", "rejected_spans", "tools", "chat_template_kwargs")

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class _ColumnError(ValueError):
    """What is wrong with one column of a row; whoever knows the row's number adds it."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"column `{column}`: {problem}")


def _get(row: Row, column: str, kind: type, name: str) -> Any:
    if column not in row:
        raise _ColumnError(column, f"is missing; the row has {sorted(row)}.")
    if not isinstance(row[column], kind):
        raise _ColumnError(column, f"must be {name}, but is {_shorten(row[column])}.")
    return row[column]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Text(NamedTuple):
    """One side of a row as the text that is tokenised.

    Args:
        text (`str`):
            Prompt and completion.
        prompt_end (`int`):
            The character where the completion begins.
        start, end (`int`):
            The characters of the completion that are aligned: without EOS or what the chat template puts around them.
    """

    text: str
    prompt_end: int
    start: int
    end: int


def row_format(row: Row) -> RowFormat:
    """Which of the formats a row has.

    - `"ids"`: tokenised already, `chosen_ids` and `rejected_ids`, with or without masks;
    - `"conversational"`: `chosen` and `rejected` are lists of messages;
    - `"dialogue"`: no `prompt`, and `chosen` and `rejected` are whole dialogues as in HH-RLHF;
    - `"standard"`: `chosen` and `rejected` are texts.

    Raises:
        ValueError: If it has none of them. The error names the column.
    """
    if all(f"{side}_ids" in row for side in SIDES):
        return "ids"
    for side in SIDES:
        _get(row, side, (str, list), "a text or a list of messages")
    if isinstance(row["chosen"], list):
        return "conversational"
    if "prompt" not in row and isinstance(row["rejected"], str) and _is_dialogue(row["chosen"], row["rejected"]):
        return "dialogue"
    return "standard"


def _is_dialogue(chosen: str, rejected: str) -> bool:
    return ASSISTANT in commonprefix([chosen, rejected]) or (chosen.startswith(HUMAN) and rejected.startswith(HUMAN))


def _standard_texts(row: Row, eos_token: str) -> dict[str, _Text]:
    chosen, rejected = (_get(row, side, str, "a text, as in the first row") for side in SIDES)
    if "prompt" in row:
        prompt = _get(row, "prompt", str, "a text, as `chosen` is")
    else:
        prompt = ""
        if _is_dialogue(chosen, rejected):
            raise _ColumnError("chosen", "is a whole dialogue, but the first row of the data set is not.")
    return {side: _with_eos(prompt, row[side], eos_token) for side in SIDES}


def _dialogue_texts(row: Row, eos_token: str) -> dict[str, _Text]:
    for side in SIDES:
        _get(row, side, str, "a text, as in the first row")
    prompt = preference_prompt(row)
    if not prompt:
        raise _ColumnError(
            "chosen",
            f"shares no {ASSISTANT!r} with `rejected`, while the first row of the data set is a whole dialogue. The "
            f"prompt ends with the last {ASSISTANT!r} that the two sides have in common.",
        )
    return {side: _with_eos(prompt, row[side].removeprefix(prompt), eos_token) for side in SIDES}


def preference_prompt(row: Row) -> str | list[Row]:
    """The prompt of a preference row, as [`prepare_dataset`] sees it: its `prompt`, a dialogue up to the last
    `"\\n\\nAssistant:"` that both sides share, or the messages that both begin with. A text, or messages; empty if there
    is none."""
    if "prompt" in row:
        return row["prompt"]
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list):
        pairs = zip(chosen, rejected, strict=False)
        shared = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
        # Where they are equal as far as they go, the last message is the completion.
        return chosen[: min(len(chosen), len(rejected)) - 1 if shared is None else shared]
    common = commonprefix([chosen, rejected])
    return common[: common.rfind(ASSISTANT) + len(ASSISTANT)] if ASSISTANT in common else ""


def _with_eos(prompt: str, completion: str, eos_token: str) -> _Text:
    words = completion.removesuffix(eos_token)
    return _Text(prompt + words + eos_token, len(prompt), len(prompt), len(prompt) + len(words))


def _conversational_texts(row: Row, tokenizer: PreTrainedTokenizerBase) -> dict[str, _Text]:
    sides = {side: _messages(row, side) for side in SIDES}
    if "prompt" in row:
        sides = {side: _messages(row, "prompt") + messages for side, messages in sides.items()}
    prompt = preference_prompt(row)
    kwargs = {"tools": _tools(row), **(row.get("chat_template_kwargs") or {})}

    def render(messages: list[Row], column: str, **more: Any) -> str:
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs, **more)
        except (TemplateError, ValueError, TypeError) as error:
            raise _ColumnError(column, f"the chat template cannot render it: {error}") from error

    texts = {side: render(messages, side) for side, messages in sides.items()}
    prompt_end = 0
    if prompt:
        # The opening of the answer belongs to the prompt. Some templates open it in another way when there is an answer
        # to come, so the prompt ends where its rendering and the whole ones part.
        opens = all(messages[len(prompt)]["role"] == "assistant" for messages in sides.values())
        prompt_text = render(prompt, "prompt" if "prompt" in row else "chosen", add_generation_prompt=opens)
        prompt_end = len(commonprefix([prompt_text, *texts.values()]))
    spots = {side: _locate(sides[side][len(prompt) :], text, prompt_end) for side, text in texts.items()}
    # What stands around the words is not aligned, so it must be the same on both sides.
    around = {(text[prompt_end : spots[side][0]], text[spots[side][1] :]) for side, text in texts.items()}
    if len(around) > 1:
        spots = {side: (prompt_end, len(text)) for side, text in texts.items()}
    return {side: _Text(text, prompt_end, *spots[side]) for side, text in texts.items()}


def _tools(row: Row) -> list[Any] | None:
    tools = row.get("tools")
    try:
        return json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise _ColumnError("tools", f"is no JSON: {error}") from error


def _messages(row: Row, column: str) -> list[Row]:
    messages = _get(row, column, list, "a list of messages")
    if not messages:
        raise _ColumnError(column, "has no messages.")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise _ColumnError(column, f"messages need `role` and `content`, but one is {_shorten(message)}.")
    return messages


def _locate(completion: list[Row], text: str, prompt_end: int) -> tuple[int, int]:
    """Where the completion's own words are in the rendered text: from those of its first message (if it has but one) to
    those of its last. Where the template hides or rewrites them they cannot be told, and the whole rendering is taken."""
    content = completion[-1].get("content")
    for words in (content, content.strip()) if isinstance(content, str) else ():
        if len(completion) == 1 and text.startswith(words, prompt_end):
            return prompt_end, prompt_end + len(words)
        if words and text.count(words, prompt_end) == 1:
            start = text.index(words, prompt_end)
            return start if len(completion) == 1 else prompt_end, start + len(words)
    return prompt_end, len(text)


def _tokenize(
    texts: dict[str, _Text], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> dict[str, TokenizedText]:
    words = [text.text for text in texts.values()]
    tokens = tokenizer(words, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    return {side: TokenizedText(*pair) for side, pair in zip(texts, pairs, strict=True)}


def _completion(tokens: TokenizedText, text: _Text) -> tuple[int, range, TokenizedText]:
    """The first token of the completion, the places of the tokens of its own text, and these tokens with offsets into that
    text. A token across the border of prompt and completion is the completion's; special tokens, which have the span
    `(0, 0)`, are the prompt's before it."""
    first = next((i for i, (_, end) in enumerate(tokens.offsets) if end > text.prompt_end), len(tokens.ids))
    # Byte-level tokenizers that trim their offsets give an empty span to a token of white space, right after it.
    offsets = [
        (start - 1, end) if 0 < start == end and text.text[start - 1].isspace() else (start, end)
        for start, end in tokens.offsets[first:]
    ]
    own = [i for i, (start, end) in enumerate(offsets) if start < text.end and end > text.start]
    if not own:
        return first, range(first, first), TokenizedText([], [])
    own, length = range(own[0], own[-1] + 1), text.end - text.start
    offsets = [(start - text.start, end - text.start) for start, end in offsets[own.start : own.stop]]
    offsets = [
        (start, end) if 0 <= start and end <= length else (min(max(start, 0), length), min(max(end, 0), length))
        for start, end in offsets
    ]
    places = range(first + own.start, first + own.stop)
    return first, places, TokenizedText(tokens.ids[places.start : places.stop], offsets)


def _span_mask(row: Row, side: str, text: _Text, own: TokenizedText) -> list[bool]:
    """1 for the tokens that overlap one of the row's own spans."""
    column = f"{side}_spans"
    words = text.text[text.start : text.end]
    if isinstance(row[side], list) and words != row[side][-1].get("content"):
        raise _ColumnError(
            column,
            f"counts characters of `{side}`, which must be one message that the chat template renders as it is.",
        )
    mask = [False] * len(own.ids)
    for span in _get(row, column, list, "a list of spans (`[]` where nothing is marked)"):
        start, end = _read_span(span, column)
        if not 0 <= start < end <= len(words):
            raise _ColumnError(
                column,
                f"the span {(start, end)} must be [start, end) within the {len(words)} characters of the completion.",
            )
        # White space at a span's edges would mark the next word, whose token has the space in front.
        marked = words[start:end]
        if marked.strip():
            start, end = end - len(marked.lstrip()), start + len(marked.rstrip())
        mask = [seen or (first < end and last > start) for seen, (first, last) in zip(mask, own.offsets, strict=True)]
    return mask


def _read_span(span: Any, column: str) -> tuple[int, int]:
    pair = [span.get("start"), span.get("end")] if isinstance(span, dict) else span
    if not isinstance(pair, (list, tuple)) or [type(place) for place in pair] != [int, int]:
        raise _ColumnError(
            column, f"a span is a pair of integers, or has `start` and `end`, but one is {_shorten(span)}."
        )
    return pair[0], pair[1]


def _scatter(mask: Sequence[bool], places: Sequence[int], length: int) -> list[int]:
    spread = [0] * length
    for place, value in zip(places, mask, strict=True):
        spread[place] = int(value)
    return spread


def _text_row(row: Row, texts: dict[str, _Text], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> Row:
    tokens = _tokenize(texts, tokenizer, add_special_tokens)
    completions = {side: _completion(tokens[side], texts[side]) for side in SIDES}
    own = {side: completions[side][2] for side in SIDES}
    words = {side: text.text[text.start : text.end] for side, text in texts.items()}
    alignment = align_tokenized(words["rejected"], words["chosen"], own["rejected"], own["chosen"])
    edits, anchors = _by_side(alignment)
    for side in SIDES:
        if f"{side}_spans" in row:
            edits[side] = _span_mask(row, side, texts[side], own[side])
            anchors[side] = [False] * len(own[side].ids)  # the alignment's gaps are not the row's
    prepared = {}
    for side in SIDES:
        length, (first, places, _) = len(tokens[side].ids), completions[side]
        prepared[f"{side}_ids"] = tokens[side].ids
        prepared[f"{side}_completion_mask"] = [0] * first + [1] * (length - first)
        for name, mask in (("edit_mask", edits[side]), ("anchor_mask", anchors[side])):
            prepared[f"{side}_{name}"] = [0] * places.start + [*map(int, mask)] + [0] * (length - places.stop)
    return prepared


def _by_side(alignment: EditAlignment) -> tuple[dict[str, list[bool]], dict[str, list[bool]]]:
    edits = {"chosen": alignment.edited_mask, "rejected": alignment.original_mask}
    anchors = {"chosen": alignment.edited_anchors, "rejected": alignment.original_anchors}
    return edits, anchors


def complete_ids_row(row: Row) -> Row:
    """The prepared form of a row that has token ids.

    Masks that the row brings are checked and kept. Without completion masks every token counts as completion; without
    edit masks the completions are aligned with [`align_ids`]; edit masks without anchor masks have no anchors.

    Args:
        row (`dict[str, Any]`):
            `chosen_ids` and `rejected_ids`, and for both sides or neither each of the masks.

    Raises:
        ValueError: If a mask is there for one side alone, has another length than its ids, has other values than 0 and
            1, or counts a token outside the completion. The error names the column.
    """
    for side in SIDES:
        if f"{side}_spans" in row:
            raise _ColumnError(
                f"{side}_spans", f"counts characters, but the row has token ids: give `{side}_edit_mask` instead."
            )
    prepared = {f"{side}_ids": _ids(row, f"{side}_ids") for side in SIDES}
    given = {name for name in MASKS for side in SIDES if f"{side}_{name}" in row}
    for name in MASKS:
        for side in SIDES:
            length = len(prepared[f"{side}_ids"])
            column = f"{side}_{name}"
            if name in given:
                prepared[column] = _mask(row, column, length)
            else:
                prepared[column] = [int(name == "completion_mask")] * length
            outside = zip(prepared[column], prepared[f"{side}_completion_mask"], strict=True)
            if any(counted > inside for counted, inside in outside):
                raise _ColumnError(column, f"counts tokens that `{side}_completion_mask` does not.")
    if "edit_mask" in given:
        return prepared
    if "anchor_mask" in given:
        raise _ColumnError("chosen_edit_mask", "is missing, while `chosen_anchor_mask` is there.")
    places = {side: [i for i, inside in enumerate(prepared[f"{side}_completion_mask"]) if inside] for side in SIDES}
    completions = {side: [prepared[f"{side}_ids"][i] for i in places[side]] for side in SIDES}
    edits, anchors = _by_side(align_ids(completions["rejected"], completions["chosen"]))
    for side in SIDES:
        length = len(prepared[f"{side}_ids"])
        prepared[f"{side}_edit_mask"] = _scatter(edits[side], places[side], length)
        prepared[f"{side}_anchor_mask"] = _scatter(anchors[side], places[side], length)
    return prepared


def _ids(row: Row, column: str) -> list[int]:
    ids = _get(row, column, list, "a list of token ids")
    if not ids:
        raise _ColumnError(column, "has no tokens.")
    if any(type(i) is not int for i in ids):
        raise _ColumnError(column, f"must be a list of integers, but is {_shorten(ids)}.")
    return ids


def _mask(row: Row, column: str, length: int) -> list[int]:
    mask = _get(row, column, list, "a list of 0 and 1")
    if len(mask) != length:
        raise _ColumnError(column, f"has {len(mask)} entries for {length} token ids.")
    if any(value not in (0, 1) for value in mask):
        raise _ColumnError(column, f"must be a list of 0 and 1, but is {_shorten(mask)}.")
    return [int(value) for value in mask]


@dataclass
class RowPreparer:
    """Turns rows of one format into prepared rows (see this module's head).

    The whole text is tokenised at once, as [`~trl.RewardTrainer`] does it: texts get an EOS at their end if they have
    none, messages get the chat template. Then the completions are aligned with [`align_tokenized`]. In a row with
    `rejected_spans` or `chosen_spans`, `[start, end)` pairs or dictionaries with `start` and `end` that count characters
    of that side's completion, the tokens which overlap them are that side's edited tokens instead.

    Args:
        format (`str`):
            As [`row_format`] says of the first row; the others must have it too.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer. Not used for `"ids"`.
        name (`str`, *optional*, defaults to `"train"`):
            What errors call the data set.
    """

    format: RowFormat
    tokenizer: PreTrainedTokenizerBase
    name: str = "train"

    def __post_init__(self):
        if self.format == "ids":
            return
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                f"Edits are projected to tokens through character offsets, which {type(self.tokenizer).__name__} does not "
                "give. Use a fast tokenizer, or prepare `chosen_ids` and `rejected_ids` yourself."
            )
        if self.format != "conversational" and self.tokenizer.eos_token is None:
            raise ValueError("The tokenizer has no EOS token to end the texts with. Set `eos_token`.")

    def __call__(self, row: Row, index: int) -> Row:
        try:
            return self._prepare(row)
        except _ColumnError as error:
            raise ValueError(f"Row {index}{_worker()} of the {self.name} data set, {error}") from error

    def _prepare(self, row: Row) -> Row:
        if self.format == "ids":
            prepared = complete_ids_row(row)
        elif self.format == "conversational":
            texts = _conversational_texts(row, self.tokenizer)
            prepared = _text_row(row, texts, self.tokenizer, add_special_tokens=False)
        else:
            split = _dialogue_texts if self.format == "dialogue" else _standard_texts
            texts = split(row, self.tokenizer.eos_token)
            prepared = _text_row(row, texts, self.tokenizer, add_special_tokens=True)
        if "margin" in row:
            margin = row["margin"]
            if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin):
                raise _ColumnError("margin", f"must be a number, but is {_shorten(margin)}.")
            prepared["margin"] = float(margin)
        return prepared


def _worker() -> str:
    info = torch.utils.data.get_worker_info()
    return "" if info is None else f" (counted in the part of data loader worker {info.id})"


def edit_ratio(row: Row) -> float:
    """Edited tokens of both sides of a prepared row, divided by the completion tokens of both sides (EOS and what the chat
    template adds included); 0 where there are none."""
    edited, tokens = (sum(sum(row[f"{side}_{name}"]) for side in SIDES) for name in ("edit_mask", "completion_mask"))
    return edited / tokens if tokens else 0.0


class LeftOut:
    """Counts rows: those that are kept, and those that are left out for one reason each.

    The counts live in shared memory and each data loader worker has its own, so the counts of a stream grow wherever it
    is read, and no two processes write to one place.

    Args:
        num_workers (`int`, *optional*, defaults to `0`):
            How many data loader workers there will be.
    """

    REASONS = ("identical", "too_long", "not_minimal")
    OUTCOMES = ("kept", *REASONS)

    def __init__(self, num_workers: int = 0):
        counts = torch.zeros(1 + num_workers, len(self.OUTCOMES), dtype=torch.long, device="cpu")
        self._counts = counts.share_memory_()

    def __deepcopy__(self, memo: dict) -> "LeftOut":
        return self  # a copied data set still counts here

    def add(self, outcome: str, rows: int = 1) -> None:
        info = torch.utils.data.get_worker_info()
        slot = 0 if info is None else 1 + info.id
        self._counts[slot % len(self._counts), self.OUTCOMES.index(outcome)] += rows

    def counts(self) -> dict[str, int]:
        """`rows` read, those `kept`, and those left out by reason."""
        counts = dict(zip(self.OUTCOMES, self._counts.sum(0).tolist(), strict=True))
        return {"rows": sum(counts.values()), **counts}

    def describe(self) -> str:
        counts = self.counts()
        reasons = ", ".join(f"{counts[reason]} {reason}" for reason in self.REASONS)
        return f"{counts['kept']} of {counts['rows']} rows are kept ({reasons})"

    def require_rows(self, name: str) -> None:
        """Raises `ValueError` if rows were read and none is kept."""
        counts = self.counts()
        if counts["kept"] or not counts["rows"]:
            return
        remedies = {
            "identical": "give pairs that differ",
            "too_long": "raise `max_length`",
            "not_minimal": "raise `max_edit_ratio`",
        }
        remedy = " or ".join(remedies[reason] for reason in self.REASONS if counts[reason])
        raise ValueError(f"Nothing is left of the {name} data set: {self.describe()}. To have rows, {remedy}.")


def row_outcome(row: Row, max_length: int | None = None, max_edit_ratio: float | None = None) -> str:
    """Whether a prepared row is `"kept"`, or why it is left out: both sides are the same and no token is marked
    (`"identical"`), else a side has more than `max_length` tokens (`"too_long"`), else its [`edit_ratio`] is above
    `max_edit_ratio` (`"not_minimal"`)."""
    if row["chosen_ids"] == row["rejected_ids"] and not any(any(row[f"{side}_edit_mask"]) for side in SIDES):
        return "identical"
    if max_length is not None and max(len(row[f"{side}_ids"]) for side in SIDES) > max_length:
        return "too_long"
    if max_edit_ratio is not None and edit_ratio(row) > max_edit_ratio:
        return "not_minimal"
    return "kept"


@dataclass
class _PrepareAndJudge:
    prepare: RowPreparer
    outcome: Callable[[Row], str]

    def __call__(self, row: Row, index: int) -> Row:
        prepared = self.prepare(row, index)
        return {**prepared, "outcome": self.outcome(prepared)}


@dataclass
class _KeepAndCount:
    outcome: Callable[[Row], str]
    left_out: LeftOut

    def __call__(self, row: Row) -> bool:
        outcome = self.outcome(row)
        self.left_out.add(outcome)
        return outcome == "kept"


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    max_edit_ratio: float | None = None,
    num_proc: int | None = None,
    num_workers: int = 0,
    name: str = "train",
) -> tuple[Dataset | IterableDataset, LeftOut]:
    """Prepares a preference data set for training on tokens.

    The formats, of which the first row decides for all:

    - TRL's preference format, texts or messages, with a `prompt` or with the prompt inside both sides. Messages that
      both sides begin with are their prompt. Texts without a `prompt` have none: a beginning that both share is unchanged
      text, not a prompt;
    - HH-RLHF's whole dialogues. The prompt is everything up to the last `"\\n\\nAssistant:"` that both sides share;
    - tokenised rows, `chosen_ids` and `rejected_ids`, and any masks (see [`complete_ids_row`]). So a prepared data set
      passes as it is.

    Texts and messages may come with spans of what is wrong (see [`RowPreparer`]), and all with a `margin`.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Preference rows.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        max_length (`int`, *optional*):
            Rows with a longer side, in tokens, are left out.
        max_edit_ratio (`float`, *optional*):
            Rows whose edit is less minimal are left out, see [`edit_ratio`].
        num_proc (`int`, *optional*):
            Processes that prepare a `Dataset`. A stream is prepared where it is read.
        num_workers (`int`, *optional*, defaults to `0`):
            Data loader workers that will read a stream, each of which counts for itself.
        name (`str`, *optional*, defaults to `"train"`):
            What errors and progress bars call the data set.

    Returns:
        `tuple[Dataset | IterableDataset, LeftOut]`: the rows that are kept, and the counts. Those of a stream are 0 at
        first and grow as it is read.

    Raises:
        ValueError: If a row does not have the format of the first (naming row and column), or if nothing is left.
    """
    dataset = dataset.with_format(None)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"The {name} data set has no rows.")
    for side in SIDES:  # what TRL called the columns before 1.0, and still takes
        if f"{side}_input_ids" in first and f"{side}_ids" not in first:
            dataset = dataset.rename_column(f"{side}_input_ids", f"{side}_ids")
            first[f"{side}_ids"] = first.pop(f"{side}_input_ids")
    try:
        preparer = RowPreparer(row_format(first), tokenizer, name)
    except _ColumnError as error:
        raise ValueError(f"Row 0 of the {name} data set, {error}") from error

    replaced = [column for column in first if column in (*RAW_COLUMNS, *PREPARED_COLUMNS, "margin")]
    features = None  # a stream may not know its own
    if dataset.features is not None:
        features = Features({column: kind for column, kind in dataset.features.items() if column not in replaced})
        features.update({c: List(Value("int64" if c.endswith("ids") else "int8")) for c in PREPARED_COLUMNS})
        if "margin" in replaced:
            features["margin"] = Value("float64")
    outcome = partial(row_outcome, max_length=max_length, max_edit_ratio=max_edit_ratio)
    left_out = LeftOut(num_workers)

    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(preparer, with_indices=True, remove_columns=replaced, features=features)
        return dataset.filter(_KeepAndCount(outcome, left_out)), left_out

    dataset = dataset.map(
        _PrepareAndJudge(preparer, outcome),
        with_indices=True,
        remove_columns=replaced,
        features=Features({**features, "outcome": Value("string")}),
        num_proc=num_proc,
        desc=f"Aligning the edits of the {name} data set",
    )
    outcomes = dataset["outcome"][:]
    dataset = dataset.remove_columns("outcome")
    for outcome in LeftOut.OUTCOMES:
        left_out.add(outcome, outcomes.count(outcome))
    left_out.require_rows(name)
    if left_out.counts()["kept"] < len(dataset):
        dataset = dataset.select([i for i, outcome in enumerate(outcomes) if outcome == "kept"])
    return dataset, left_out


@dataclass
class DataCollatorForTokenReward(DataCollatorMixin):
    """
    Data collator for token reward modelling. Rows are padded on the right to the longest of the batch.

    Rows need `"chosen_ids"` and `"rejected_ids"`. Those without masks are completed by [`~data.preprocessing.complete_ids_row`], so the
    collator can stand behind any tokenised preference data set. The batch of B rows holds tensors of shape (2B, L), the
    first half for the chosen sides and the second for the rejected ones:

    - `"input_ids"` and `"attention_mask"`, integers;
    - `"completion_mask"`, `"edit_mask"` and `"anchor_mask"`, Booleans;

    and `"margin"`, of shape (B,), if the rows have one.

    Args:
        pad_token_id (`int`):
            Token ID to use for padding. It may be any, the EOS token's too: the masks say what is real.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences are padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Only `"pt"` is supported.

    Examples:
    ```python
    >>> from trl_tokenreward import DataCollatorForTokenReward

    >>> collator = DataCollatorForTokenReward(pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}])
    >>> batch["input_ids"]
    tensor([[5, 6, 7],
            [5, 8, 0]])
    >>> batch["edit_mask"]
    tensor([[False,  True,  True],
            [False,  True, False]])
    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[Row]) -> dict[str, torch.Tensor]:
        rows = []
        for index, row in enumerate(examples):
            try:
                rows.append(row if all(column in row for column in PREPARED_COLUMNS) else complete_ids_row(row))
            except _ColumnError as error:
                raise ValueError(f"Row {index} of the batch, {error}") from error
        ids = [torch.tensor(row[f"{side}_ids"]) for side in SIDES for row in rows]
        batch = {
            "input_ids": self._pad(ids, self.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in ids], 0),
        }
        for name in MASKS:
            masks = [torch.tensor(row[f"{side}_{name}"], dtype=torch.bool) for side in SIDES for row in rows]
            batch[name] = self._pad(masks, False)
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float)
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad(rows, padding_value=value, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
