"""Reads the answers to edit from a preference data set."""

import hashlib
import json
import re
from itertools import islice
from typing import Any, NamedTuple

from datasets import Dataset, Features, Value

from ..data.formats import (
    ASSISTANT,
    HUMAN,
    Messages,
    given_columns,
    preference_prompt,
    row_format,
    row_sides,
    template_columns,
)
from ..edits.alignment import align_words
from ..edits.diff import diff_pieces
from ..utils.chat_endpoint import Prompt
from ..utils.messages import other_fields
from ..utils.validation import check_least_if_given


_CHARACTER = re.compile(r"\r\n|[\s\S]")  # one for each that `line_breaks` leaves


class Task(NamedTuple):
    """One answer to edit.

    Args:
        row (`int`):
            The row's number in the data set.
        hash (`str`):
            A hash of the prompt and the rejected side.
        prompt (`str` or `list[dict]`):
            As [`~data.formats.preference_prompt`] gives it.
        answer (`str`):
            The rejected answer.
        unfit (`str`):
            Why there is nothing to edit (`"several_turns"`, `"more_than_text"`, `"empty"`), or `""`.
        more (`dict`):
            Other columns that go along.
    """

    row: int
    hash: str
    prompt: Prompt
    answer: str
    unfit: str
    more: dict[str, Any]

    @property
    def key(self) -> tuple[int, str]:
        return self.row, self.hash

    def with_words(self, words: str) -> str:
        """The answer with its text replaced. The white space around it stays, so that a model does not learn from it,
        and so do its line breaks, which language models and text fields write in their own way."""
        own = self.answer.strip()
        return self.answer.replace(own, _with_line_breaks(own, words.strip()), 1)


def line_breaks(text: str) -> str:
    """A text with `\\n` for every line break."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _with_line_breaks(original: str, edited: str) -> str:
    """An edited text, in which the line breaks that were kept are those of the original."""
    if "\r" not in original:
        return edited
    shown = line_breaks(original), line_breaks(edited)
    before, after = (iter(_CHARACTER.findall(text)) for text in (original, edited))
    restored: list[str] = []
    for kind, text, _ in diff_pieces(*shown, align_words(*shown)):
        old = [*islice(before, len(text))] if kind != "insert" else []
        new = [*islice(after, len(text))] if kind != "delete" else []
        restored += old if kind == "keep" else new
    return "".join(restored)


def as_pairs(dataset: Dataset) -> Dataset:
    """A data set of `prompt` and `completion` as pairs: `rejected` is the completion, and `chosen` is empty, for
    nothing is known to be better. Any other data set is returned as it is.

    Raises:
        `ValueError`: if the completions are marked already, or are neither texts nor messages.
    """
    if not isinstance(dataset, Dataset) or not {"prompt", "completion"} <= set(dataset.column_names):
        return dataset
    if {"chosen", "rejected"} & set(dataset.column_names):
        return dataset
    if marks := sorted({"completion_spans", "completion_judged"} & set(dataset.column_names)):
        raise ValueError(
            f"`dataset` has {' and '.join(f'`{column}`' for column in marks)}: its completions are marked already, and "
            "TokenRewardTrainer takes them as they are. To have them edited all the same, remove the marks: "
            f"`dataset.remove_columns({marks})`."
        )
    _check_format(dataset)
    dataset = dataset.with_format(None)
    kind = dataset.features["completion"]
    is_text = isinstance(kind, Value)
    if is_text and "string" not in kind.dtype:  # one of string, large_string and string_view
        raise ValueError(f"`completion` must be texts or messages, but has values of the type {kind.dtype}.")
    features, nothing = Features({**dataset.features, "chosen": kind}), "" if is_text else []
    pairs = dataset.map(
        lambda answer: {"completion": nothing if answer is None else answer, "chosen": nothing},
        input_columns="completion",
        features=features,
    )
    return pairs.rename_column("completion", "rejected")


def _check_format(dataset: Dataset) -> None:
    if dataset.format["type"] == "custom":
        raise ValueError("`dataset` has a transform, and its edits are saved by columns: apply it with `dataset.map`.")


def read_tasks(dataset: Dataset, limit: int | None = None) -> list[Task]:
    """The tasks of a preference data set of texts, messages or whole dialogues, or of its first rows.

    Raises:
        `ValueError`: if there are no rows, or one is malformed or has another format than the first; the error names
        it.
    """
    check_least_if_given(limit=(limit, 1))
    if not isinstance(dataset, Dataset) or not len(dataset):
        raise ValueError(f"`dataset` must be a Dataset with rows, got {dataset!r}.")
    _check_format(dataset)
    dataset = dataset.with_format(None)
    tasks, format = [], None
    for index, row in enumerate(dataset if limit is None else dataset.take(min(limit, len(dataset)))):
        task, format = _read_row(row, index, format)
        tasks.append(task)
    return tasks


def _read_row(row: dict[str, Any], index: int, format: str | None) -> tuple[Task, str]:
    """The task of one row, and the format that it has, which must be `format` unless that is `None`."""
    more = template_columns(row)
    try:
        row = given_columns(row)
        if len(row_sides(row)) == 1:
            raise ValueError("it has marked spans and one side: what is edited are the `rejected` sides of pairs.")
        own = row_format(row)
    except ValueError as error:
        raise ValueError(f"Row {index} of the data set, {error}") from error
    kind = list if own == "conversational" else str
    sides = [row[column] for column in ("prompt", "chosen", "rejected") if column in row]
    if own == "ids" or any(not isinstance(side, kind) for side in sides):
        raise ValueError(f"Row {index} of the data set: its `prompt` and answers must all be texts, or all messages.")
    if own != (format or own):
        raise ValueError(f"Row {index} of the data set has the {own} format, but the first row has the {format} one.")
    prompt, answer, unfit = preference_prompt(row), row["rejected"], ""
    if own == "conversational":
        if any(not isinstance(m, dict) or not {"role", "content"} <= m.keys() for side in sides for m in side):
            raise ValueError(f"Row {index} of the data set: messages need `role` and `content`.")
        messages = answer if "prompt" in row else answer[len(prompt) :]
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            answer, unfit = "", "several_turns"
        else:
            answer = messages[0]["content"] or ""
            # What calls a tool or has a reasoning is not judged, and not edited, by its text alone.
            unfit = "more_than_text" if other_fields(messages[0]) or not isinstance(answer, str) else ""
    elif own == "dialogue":
        if not prompt:
            raise ValueError(f"Row {index} of the data set: the two dialogues share no {ASSISTANT!r}.")
        answer = answer.removeprefix(prompt)
        unfit = "several_turns" if HUMAN in answer or ASSISTANT in answer else ""
    answer = answer if isinstance(answer, str) else ""
    unfit = unfit or ("" if answer.strip() else "empty")
    digest = hashlib.sha256(json.dumps([prompt, row["rejected"]], sort_keys=True).encode()).hexdigest()
    prompt = Messages(prompt, row) if isinstance(prompt, list) else prompt
    return Task(index, digest[:16], prompt, answer, unfit, more), own
