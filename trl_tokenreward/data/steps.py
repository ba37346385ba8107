"""Solutions in steps: TRL's stepwise supervision, and its labels as spans of characters.

A row of stepwise supervision becomes a row with one side, whose tokens are labelled by spans `[start, end)` of
characters of the completion:

- `prompt`, `completion`: the question, and the steps joined to one text;
- `completion_spans`: the steps that are wrong;
- `completion_judged`: all steps that somebody judged, right and wrong. Other tokens, such as separators, have no label.

White space at the edges of a step is in no span.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from ..utils.text import shorten
from ..utils.validation import get_value
from .spans import read_spans, without_white_space


Row = dict[str, Any]
StepLabels = Literal["every_token", "last_token"]

STEP_SEPARATOR = "\n"
STEP_LABELS: dict[StepLabels, str] = {
    "every_token": "every token of a step has the step's label",
    "last_token": "only the last token of a step has a label",
}


class JoinedSteps(NamedTuple):
    """Steps as one text.

    Args:
        text (`str`):
            The steps with the separator between them.
        spans (`list[list[int]]`):
            `[start, end)` characters of each step, without white space at its edges.
    """

    text: str
    spans: list[list[int]]


def join_steps(steps: Sequence[str], separator: str = STEP_SEPARATOR) -> JoinedSteps:
    """Joins steps to one text and says where each of them is.

    TRL's `PRMTrainer` also puts the separator after the last step, and its label there. Here the text ends as the
    policy ends it, with the last step.

    Args:
        steps (`Sequence[str]`):
            Texts, none of them empty or of white space alone.
        separator (`str`, *optional*, defaults to `"\\n"`):
            What stands between two steps. It may be empty if steps bring their own.

    Raises:
        ValueError: If a step has no text.
    """
    text, spans, start = separator.join(steps), [], 0
    for number, step in enumerate(steps):
        if not step.strip():
            raise ValueError(f"step {number} is empty, so it has no token to label.")
        spans.append([*without_white_space(text, start, start + len(step))])
        start += len(step) + len(separator)
    return JoinedSteps(text, spans)


def steps_row(
    prompt: str,
    steps: Sequence[str],
    labels: Sequence[bool | None],
    step_separator: str = STEP_SEPARATOR,
    step_labels: StepLabels = "every_token",
) -> Row:
    """One solution as a row with one side.

    Args:
        prompt (`str`):
            The question. The first step follows it immediately.
        steps (`Sequence[str]`):
            The solution.
        labels (`Sequence[bool | None]`):
            Of each step: true if it is right, false if it is wrong, `None` if nobody judged it.
        step_separator (`str`, *optional*, defaults to `"\\n"`):
            What stands between two steps.
        step_labels (`str`, *optional*, defaults to `"every_token"`):
            Which tokens of a step have its label:

            - `"every_token"`: all of them. A step's score is then the mean of its tokens';
            - `"last_token"`: the last one, after which the whole step is known. Lightman et al. (2023,
              https://huggingface.co/papers/2305.20050) and TRL's `PRMTrainer` label steps like this. Of a last
              character that the tokenizer cuts into several tokens, such as an emoji, all of them.

    Returns:
        `dict[str, Any]`: `prompt`, `completion`, `completion_spans`, `completion_judged`.

    Raises:
        ValueError: If a step is empty, or if there are not as many labels as steps.
    """
    if step_labels not in STEP_LABELS:
        raise ValueError(f"`step_labels` must be one of {list(STEP_LABELS)}, not {step_labels!r}.")
    if len(steps) != len(labels):
        raise ValueError(f"there are {len(steps)} steps, but {len(labels)} labels.")
    text, spans = join_steps(steps, step_separator)
    if step_labels == "last_token":
        spans = [[end - 1, end] for _, end in spans]
    judged = [(span, label) for span, label in zip(spans, labels, strict=True) if label is not None]
    return {
        "prompt": prompt,
        "completion": text,
        "completion_spans": [span for span, label in judged if not label],
        "completion_judged": [span for span, _ in judged],
    }


def stepwise_row(
    row: Mapping[str, Any], step_separator: str = STEP_SEPARATOR, step_labels: StepLabels = "every_token"
) -> Row | str:
    """A row of TRL's stepwise supervision as a row with one side (see [`steps_row`]).

    Args:
        row (`Mapping[str, Any]`):
            `prompt`, a text; `completions`, the steps; `labels`, true, false or `None` for each. With labels of `None`
            but for the last step, a model learns what TRL's `train_on_last_step_only=True` teaches.
        step_separator (`str`), step_labels (`str`):
            As in [`steps_row`].

    Returns:
        `dict[str, Any]` or `str`: the row, or the reason to drop it: `"a solution without steps"`,
        `"a step is empty"` or `"no step is judged"`.

    Raises:
        ValueError: If a column is missing or malformed. The error names it.
    """
    prompt, steps = get_value(row, "prompt"), _texts(row, "completions")
    labels = get_value(row, "labels", list)
    for number, label in enumerate(labels):
        if not (label is None or isinstance(label, bool) or (isinstance(label, int) and label in (0, 1))):
            raise ValueError(f"label {number} of `labels` must be true, false or null, but is {shorten(label)}.")
    if len(labels) != len(steps):
        raise ValueError(f"`completions` has {len(steps)} steps, but `labels` has {len(labels)} labels.")
    if reason := _nothing_to_label(steps, labels):
        return reason
    return steps_row(prompt, steps, [None if x is None else bool(x) for x in labels], step_separator, step_labels)


def prmbench_rows(
    row: Mapping[str, Any], step_separator: str = STEP_SEPARATOR, step_labels: StepLabels = "every_token"
) -> list[Row | str]:
    """A row of PRMBench as two rows with one side, the right solution and the wrong one (see [`steps_row`]).

    They are not made a pair: in parts of PRMBench the two solutions answer different questions, and evaluation by step
    takes rows with one side.

    Args:
        row (`Mapping[str, Any]`):
            `original_question` and `original_process`, whose steps are all right; `modified_question` and
            `modified_process`, whose steps with the numbers of `error_steps`, counted from 1, are wrong.
        step_separator (`str`), step_labels (`str`):
            As in [`steps_row`].

    Returns:
        `list[dict[str, Any] | str]`: the two rows, each or the reason to drop it: those of [`stepwise_row`],
        `"a wrong step that is not there"` or `"a wrong solution without a wrong step"`. The prompt ends with the
        separator.

    Raises:
        ValueError: If a column is missing or malformed. The error names it.
    """
    wrong = get_value(row, "error_steps", list)
    if any(type(number) is not int or number < 1 for number in wrong):
        raise ValueError(f"`error_steps` must be numbers of steps, counted from 1, but is {shorten(wrong)}.")
    rows: list[Row | str] = []
    for side, errors in (("original", set()), ("modified", set(wrong))):
        question, steps = get_value(row, f"{side}_question"), _texts(row, f"{side}_process")
        labels = [number not in errors for number in range(1, len(steps) + 1)]
        reason = _nothing_to_label(steps, labels)
        if reason is None and max(errors, default=0) > len(steps):
            reason = "a wrong step that is not there"
        if reason is None and side == "modified" and not errors:
            reason = "a wrong solution without a wrong step"
        rows.append(reason or steps_row(question + step_separator, steps, labels, step_separator, step_labels))
    return rows


def read_steps(row: Mapping[str, Any], text: str) -> tuple[list[list[int]], list[bool]]:
    """The steps of a row with one side, `[start, end)` without white space at their edges, and whether each is right:
    no wrong span overlaps it.

    Args:
        row (`Mapping[str, Any]`):
            `completion_judged` and `completion_spans`.
        text (`str`):
            The completion, whose characters they count.

    Raises:
        ValueError: If the spans are malformed, there are no steps, a step begins before the one before it has ended, or
            a wrong span is in no step. The error names the column.
    """
    columns = {}
    for name in ("completion_judged", "completion_spans"):
        try:
            columns[name] = read_spans(get_value(row, name, list), text, "completion")
        except ValueError as error:
            raise ValueError(f"column `{name}`: {error}") from error
    steps, wrong = columns["completion_judged"], columns["completion_spans"]
    if not steps:
        raise ValueError("column `completion_judged`: is empty, so there is no step.")
    for (_, before), (start, end) in pairwise(steps):
        if start < before:
            raise ValueError(f"column `completion_judged`: the step [{start}, {end}) begins before {before}.")
    for start, end in wrong:
        if not any(start < last and end > first for first, last in steps):
            raise ValueError(f"column `completion_spans`: the span [{start}, {end}) is in no judged step.")
    steps = [[*without_white_space(text, *step)] for step in steps]
    return steps, [not any(s < last and e > first for s, e in wrong) for first, last in steps]


def _nothing_to_label(steps: Sequence[str], labels: Sequence[Any]) -> str | None:
    """The reason to drop a solution, or `None`."""
    if not steps:
        return "a solution without steps"
    if not all(step.strip() for step in steps):
        return "a step is empty"
    return "no step is judged" if all(label is None for label in labels) else None


def _texts(row: Mapping[str, Any], column: str) -> list[str]:
    texts = get_value(row, column, list)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"step {number} of `{column}` must be a text, but is {shorten(text)}.")
    return texts
