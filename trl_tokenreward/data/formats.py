"""The formats of rows, and the texts that are tokenized: of pairs for the reward model, of prompts for PPO."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from os.path import commonprefix
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from rapidfuzz.distance import Levenshtein
from transformers import PreTrainedTokenizerBase

from ..utils.messages import is_message, template_message, without_none
from ..utils.text import shorten, unicode_problem


Row = dict[str, Any]
RowFormat = Literal["ids", "conversational", "dialogue", "standard"]

SIDES = ("chosen", "rejected")


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class ColumnError(ValueError):
    """An error in one column of a row. The caller adds the row's number."""

    def __init__(self, column: str, problem: str):
        super().__init__(f"column `{column}`: {problem}")


def check_dataset(dataset: Any, name: str) -> None:
    """Raise a `TypeError` unless the data set that errors call `name` is one of `datasets`."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        remedy = "pass one of its splits" if isinstance(dataset, dict) else "`Dataset.from_list` makes one of a list"
        raise TypeError(
            f"The {name} data set must be a `Dataset` or an `IterableDataset`, but is a {type(dataset).__name__}: "
            f"{remedy}."
        )


def plain_rows(dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """The data set, which errors call `name`, with Python values in its rows, and not tensors. A transform
    (`with_transform`) is kept, since what it gives are the rows."""
    check_dataset(dataset, name)
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        return dataset
    return dataset.with_format(None)


def get_column(row: Row, column: str, kind: type | tuple[type, ...], name: str) -> Any:
    if column not in row:
        raise ColumnError(column, f"is missing; the row has {sorted(row)}.")
    if not isinstance(row[column], kind):
        raise ColumnError(column, f"must be {name}, but is {shorten(row[column])}.")
    return row[column]


class RenderedText(NamedTuple):
    """One side of a row as the text that is tokenized.

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


def check_row(row: Any) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be a dictionary of columns, but is {shorten(row)}.")


def check_unicode(row: Row) -> None:
    """Raise a [`ColumnError`] if a text of a row has half of a character, of which no tokenizer can make tokens."""
    for column in ("prompt", *SIDES, "completion", "tools", "chat_template_kwargs"):
        if problem := unicode_problem(row.get(column)):
            raise ColumnError(column, problem)


def row_sides(row: Row) -> tuple[str, ...]:
    """The columns of a row's sides: [`SIDES`], or the one side of a row whose wrong tokens are marked and that has no
    correction. That is `completion`, or `rejected` with `rejected_spans` (of token ids with `rejected_edit_mask`) and
    without anything chosen. A column that is `None` is not there.

    Raises:
        ValueError: If the row has both, or a `completion` column and neither. The error names the column.
    """
    check_row(row)
    there = {column for column, value in row.items() if value is not None}
    pair = sorted(there & {*SIDES, *(f"{side}_ids" for side in SIDES)})
    if "completion" in there:
        if pair:
            raise ColumnError("completion", f"is there beside {pair}: a row has one side, or two, but not both.")
        return ("completion",)
    if marks := sorted(there & {"completion_spans", "completion_judged"}):
        raise ColumnError(marks[0], "marks characters of `completion`, which the row does not have.")
    if "completion" in row and not pair:
        raise ColumnError("completion", "is missing, and so are `chosen` and `rejected`: a row has one side, or two.")
    marked = {"rejected", "rejected_spans"} <= there or {"rejected_ids", "rejected_edit_mask"} <= there
    return ("rejected",) if marked and not any(column.startswith("chosen") for column in there) else SIDES


# Columns that a row may lack, so that a misspelt one would be taken for one of the user's own.
OPTIONAL_COLUMNS = (
    *("chosen_spans", "rejected_spans", "completion_spans", "completion_judged", "margin", "chat_template_kwargs"),
    *(f"{side}_{mask}" for mask in ("completion_mask", "edit_mask", "anchor_mask") for side in SIDES),
    "rejected_token_weights",
)


def check_column_names(row: Row) -> None:
    """Raise a [`ColumnError`] if a row has a column that nothing reads, and whose name is one character from that of an
    optional column that the row lacks, or two from a long one (`chosen_stats` is no `chosen_spans`)."""
    if misspelt := _misspelt(tuple(row)):
        column, known = misspelt
        raise ColumnError(column, f"is not read. Call it `{known}` if it is that, or remove or rename it.")


@lru_cache
def _misspelt(columns: tuple[str, ...]) -> tuple[str, str] | None:
    """The first misspelt column and what it is meant for. The rows of a data set have the same columns."""
    for column in columns:
        for known in OPTIONAL_COLUMNS if column not in OPTIONAL_COLUMNS else ():
            most = 2 if len(known) > len("completion_spans") else 1
            if known not in columns and Levenshtein.distance(column, known) <= most:
                return column, known
    return None


def given_columns(row: Row) -> Row:
    """The row without the columns that are `None`, as Arrow has them where a row lacks what other rows have. Its sides
    stay: it must have them."""
    sides = row_sides(row)
    return {column: value for column, value in row.items() if value is not None or column in sides}


def row_format(row: Row) -> RowFormat:
    """The format of a row.

    - `"ids"`: tokenized already, `chosen_ids` and `rejected_ids`, with or without masks;
    - `"conversational"`: its sides are lists of messages;
    - `"dialogue"`: no `prompt`, and `chosen` and `rejected` are whole dialogues as in HH-RLHF;
    - `"standard"`: its sides are texts.

    Raises:
        ValueError: If it has none of them. The error names the column.
    """
    sides = row_sides(row)
    if sides != ("completion",) and all(f"{side}_ids" in row for side in sides):
        return "ids"
    for side in sides:
        get_column(row, side, (str, list), "a text or a list of messages")
    if isinstance(row[sides[0]], list):
        return "conversational"
    if "prompt" in row or len(sides) == 1 or not isinstance(row["rejected"], str):
        return "standard"
    return "dialogue" if _is_dialogue(row["chosen"], row["rejected"]) else "standard"


def _is_dialogue(chosen: str, rejected: str) -> bool:
    return ASSISTANT in commonprefix([chosen, rejected]) or (chosen.startswith(HUMAN) and rejected.startswith(HUMAN))


def standard_texts(row: Row, eos_token: str) -> dict[str, RenderedText]:
    sides = {side: get_column(row, side, str, "a text, as in the first row") for side in row_sides(row)}
    if "prompt" in row:
        prompt = get_column(row, "prompt", str, f"a text, as `{next(iter(sides))}` is")
    else:
        prompt = ""
        if len(sides) == len(SIDES) and _is_dialogue(sides["chosen"], sides["rejected"]):
            raise ColumnError("chosen", "is a whole dialogue, but the first row of the data set is not.")
    return {side: _with_eos(prompt, text, eos_token) for side, text in sides.items()}


def dialogue_texts(row: Row, eos_token: str) -> dict[str, RenderedText]:
    for side in SIDES:
        get_column(row, side, str, "a text, as in the first row")
    prompt = preference_prompt(row)
    if not isinstance(prompt, str) or not prompt:
        raise ColumnError(
            "chosen",
            f"shares no {ASSISTANT!r} with `rejected`, while the first row of the data set is a whole dialogue. The "
            f"prompt ends with the last {ASSISTANT!r} that the two sides have in common.",
        )
    return {side: _with_eos(prompt, row[side].removeprefix(prompt), eos_token) for side in SIDES}


def preference_prompt(row: Row) -> str | list[Row]:
    """The prompt of a row, as [`~data.preprocessing.prepare_dataset`] sees it: its `prompt`, a dialogue up to the last
    `"\\n\\nAssistant:"` that both sides share, or the messages that both begin with; of the messages of one side, all
    but the last. A text, or messages; empty if there is none."""
    if "prompt" in row:
        return row["prompt"]
    sides = row_sides(row)
    if len(sides) == 1:
        only = row[sides[0]]
        return only[:-1] if isinstance(only, list) else ""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list):
        # A column of Arrow has every field in every message, `None` where the message has none.
        pairs = zip(without_none(chosen), without_none(rejected), strict=False)
        shared = next((n for n, (one, other) in enumerate(pairs) if one != other), None)
        # If one side begins with the other, the last message is the completion.
        return chosen[: min(len(chosen), len(rejected)) - 1 if shared is None else shared]
    common = commonprefix([chosen, rejected])
    return common[: common.rfind(ASSISTANT) + len(ASSISTANT)] if ASSISTANT in common else ""


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """The prompt of a row as the text that a completion continues, and whether a chat template rendered it.

    A `prompt` of messages that ends in one of the assistant is left open: that message is the beginning of the answer.

    Args:
        row (`dict[str, Any]`):
            A `prompt`, a text or messages, or a preference row, with the columns `tools` and `chat_template_kwargs`
            where the template wants them.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, whose chat template renders messages.

    Raises:
        ValueError: If the row has no prompt, or the template cannot render it. The error names the column.
    """
    prompt, column = given_prompt(row)
    if isinstance(prompt, str):
        return prompt, False
    return _render(row, prompt, column, tokenizer, **_opening(row, prompt)), True


def given_prompt(row: Row) -> tuple[str | list[Row], str]:
    """The prompt of a row, a text or messages, and the column that it stands in.

    Raises:
        ValueError: If the row has none. The error names the column.
    """
    if "prompt" not in row and row_format(row) == "conversational":
        for side in row_sides(row):
            get_messages(row, side)
    prompt = preference_prompt(row)
    column = "prompt" if "prompt" in row else row_sides(row)[0]
    if not isinstance(prompt, (str, list)) or not prompt:
        raise ColumnError(column, f"the prompt must be a text or messages, not empty, but is {shorten(prompt)}.")
    if isinstance(prompt, list) and column == "prompt":
        get_messages(row, column)
    return prompt, column


def template_columns(row: Mapping[str, Any]) -> Row:
    """What a row gives its chat template beside messages."""
    return {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}


class Messages(list):
    """A prompt of messages that knows what else the row gives its chat template: `tools` and `chat_template_kwargs`.
    Judges, which are given prompts alone, render it as the policy read it.

    Args:
        messages (`list[dict[str, Any]]`):
            The messages.
        row (`dict[str, Any]`, *optional*):
            The row. A copy that is made as one of a list is, such as that of `dataclasses.asdict`, has none.
    """

    def __init__(self, messages: Iterable[Row] = (), row: Mapping[str, Any] = MappingProxyType({})):
        super().__init__(messages)
        self.template = template_columns(row)


def answered_text(prompt: list[Row], answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt of messages with the assistant's answer, as the chat template renders them.

    Raises:
        ValueError: If the template cannot render them.
    """
    row = {"prompt": prompt, **(prompt.template if isinstance(prompt, Messages) else {})}
    messages = [*prompt, {"role": "assistant", "content": answer}]
    is_prefilled = _is_prefilled(row, prompt)
    return _render(row, _joined(messages, len(prompt)) if is_prefilled else messages, "prompt", tokenizer)


def closing_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the white space that the chat template puts after the EOS of an answer, if any."""
    eos = tokenizer.eos_token
    if tokenizer.chat_template is None or eos is None:
        return []
    try:
        text = answered_text([{"role": "user", "content": "a"}], "b", tokenizer)
    except ColumnError:  # a template that wants more
        return []
    after = text.rpartition(eos)[2] if eos in text else ""
    return tokenizer(after, add_special_tokens=False)["input_ids"] if after and not after.strip() else []


def _opening(row: Row, prompt: Sequence[Any]) -> dict[str, bool]:
    """How the chat template ends a prompt that an assistant's message follows on."""
    return {"continue_final_message" if _is_prefilled(row, prompt) else "add_generation_prompt": True}


def _is_prefilled(row: Row, prompt: Sequence[Any]) -> bool:
    return "prompt" in row and prompt[-1]["role"] == "assistant"


def _render(row: Row, messages: Sequence[Any], column: str, tokenizer: PreTrainedTokenizerBase, **how: Any) -> str:
    kwargs = row.get("chat_template_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ColumnError("chat_template_kwargs", f"must be a dictionary, but is {shorten(kwargs)}.")
    # As in messages, `None` is what Arrow puts where a row has no such argument.
    kwargs = {"tools": _tools(row), **without_none(kwargs or {}), **how, "tokenize": False}
    try:
        return str(tokenizer.apply_chat_template([template_message(message) for message in messages], **kwargs))
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ColumnError(column, f"the chat template cannot render it: {error}") from error


def _with_eos(prompt: str, completion: str, eos_token: str) -> RenderedText:
    words = completion.removesuffix(eos_token)
    return RenderedText(prompt + words + eos_token, len(prompt), len(prompt), len(prompt) + len(words))


def conversational_texts(row: Row, tokenizer: PreTrainedTokenizerBase) -> dict[str, RenderedText]:
    sides = {side: get_messages(row, side) for side in row_sides(row)}
    if "prompt" in row:
        sides = {side: get_messages(row, "prompt") + messages for side, messages in sides.items()}
    prompt = preference_prompt(row)
    # Some templates open the answer in another way when there is one to come, so the prompt ends where its rendering
    # and the whole ones part.
    opens = bool(prompt) and all(messages[len(prompt)]["role"] == "assistant" for messages in sides.values())
    is_prefilled = opens and _is_prefilled(row, prompt)
    texts = {
        side: _render(row, _joined(messages, len(prompt)) if is_prefilled else messages, side, tokenizer)
        for side, messages in sides.items()
    }
    prompt_end = 0
    if prompt:
        how = _opening(row, prompt) if opens else {}
        prompt_text = _render(row, prompt, "prompt" if "prompt" in row else next(iter(sides)), tokenizer, **how)
        prompt_end = len(commonprefix([prompt_text, *texts.values()]))
        if prompt_end < len(prompt_text):  # an answer may begin as what opens one to come, such as `<think>`
            prompt_end = min(_begin(sides[side][len(prompt)], text, prompt_end) for side, text in texts.items())
    spots = {side: _locate(sides[side][len(prompt) :], text, prompt_end) for side, text in texts.items()}
    # The text around the words is not aligned, so it must be the same on both sides.
    around = {(text[prompt_end : spots[side][0]], text[spots[side][1] :]) for side, text in texts.items()}
    if len(around) > 1:
        spots = {side: (prompt_end, len(text)) for side, text in texts.items()}
    return {side: RenderedText(text, prompt_end, *spots[side]) for side, text in texts.items()}


def _joined(messages: list[Row], start: int) -> list[Row]:
    """The messages, where that at `start` continues the one before it."""
    contents: list[Any] = [message.get("content") for message in messages[start - 1 : start + 1]]
    if not all(isinstance(content, str) for content in contents):
        raise ColumnError(
            "prompt",
            "ends in a message of the assistant, which the answer continues, so the `content` of both must be texts, "
            f"but they are {shorten(contents)}.",
        )
    answer = {**messages[start], "content": "".join(contents)}
    return [*messages[: start - 1], answer, *messages[start + 1 :]]


def _tools(row: Row) -> list[Any] | None:
    tools = row.get("tools")
    try:
        return json.loads(tools) if isinstance(tools, str) else without_none(tools)
    except json.JSONDecodeError as error:
        raise ColumnError("tools", f"is no JSON: {error}") from error


def get_messages(row: Row, column: str) -> list[Row]:
    """The messages in a column of a row. A [`ColumnError`] says if there are none, or one has no role."""
    messages = get_column(row, column, list, "a list of messages")
    if not messages:
        raise ColumnError(column, "has no messages.")
    for message in messages:
        if not is_message(message):
            raise ColumnError(column, f"messages need `role` and `content`, but one is {shorten(message)}.")
    return messages


def _begin(message: Row, text: str, end: int) -> int:
    """Where the words of a message begin in the rendered text, if that is before `end` and they reach beyond it; else
    `end`."""
    for words in _words(message):
        for place in range(end, max(end - len(words), -1), -1):
            if text.startswith(words, place):
                return place
    return end


def _words(message: Row) -> tuple[str, ...]:
    """The words of a message as templates render them: as they are, or without the white space around them."""
    content = message.get("content")
    return (content, content.strip()) if isinstance(content, str) else ()


def _locate(completion: list[Row], text: str, prompt_end: int) -> tuple[int, int]:
    """Where the completion's own words are in the rendered text: from those of its first message (if it has but one) to
    those of its last. Where the template hides or rewrites them they cannot be told, and the whole rendering is
    taken."""
    for words in _words(completion[-1]):
        if len(completion) == 1 and text.startswith(words, prompt_end):
            return prompt_end, prompt_end + len(words)
        if words and text.count(words, prompt_end) == 1:
            start = text.index(words, prompt_end)
            return start if len(completion) == 1 else prompt_end, start + len(words)
    return prompt_end, len(text)
