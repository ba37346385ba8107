"""What editors and annotators share: the answers to edit, the checks that an edit must pass, the log of what is done, and the
data set that comes of it."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, Value

from ..data.preprocessing import ASSISTANT, HUMAN, preference_prompt, row_format
from ..edits.alignment import EditAlignment, align_words
from ..utils.chat_endpoint import Prompt, check_least, read_jsonl
from ..utils.statistics import markdown


Score = Callable[[list[Prompt], list[str]], list[float]]

DEFAULT_CRITERIA = "The answer is helpful, correct and harmless."
EDITED = "edited"


@dataclass
class EditChecks:
    """What an edit must be, to be kept.

    Args:
        max_edit_ratio (`float`, *optional*, defaults to `0.5`):
            Largest share of edited words among the words of both sides, see [`EditAlignment`].
        max_hunks (`int`, *optional*, defaults to `16`):
            Most places where something is edited.
        max_length_change (`float`, *optional*, defaults to `0.5`):
            By which share of its characters the answer may become shorter or longer.
        score (`Callable`, *optional*):
            Takes prompts (texts, or messages where the data set has messages) and answers, returns one float for each
            answer, as [`RewardModelJudge`]'s `scores`. The edit must score higher than the original. A `ValueError` means
            that this answer cannot be scored.

    Raises:
        `ValueError`: for a bad argument.
    """

    max_edit_ratio: float = 0.5
    max_hunks: int = 16
    max_length_change: float = 0.5
    score: Score | None = None

    def __post_init__(self):
        if not 0 < self.max_edit_ratio <= 1:
            raise ValueError(f"`max_edit_ratio` must be above 0 and at most 1, got {self.max_edit_ratio}.")
        check_least(max_hunks=(self.max_hunks, 1), max_length_change=(self.max_length_change, 0))

    def __call__(self, prompt: Prompt, original: str, edited: str) -> tuple[str, str]:
        """`("edited", "")`, or the reason against the edit, and that as a sentence."""
        reason, detail = self.check_size(original, edited, align_words(original, edited))
        if reason != EDITED or self.score is None:
            return reason, detail
        try:
            new, old = self.score([prompt, prompt], [edited, original])
        except ValueError as error:
            return "not_scored", str(error)
        if not new > old:
            return "not_better", f"The edited answer is no better: it scores {new:.4g}, the original {old:.4g}."
        return EDITED, ""

    def check_size(self, original: str, edited: str, alignment: EditAlignment) -> tuple[str, str]:
        """What `__call__` says, without the score. `alignment` is [`align_words`]'s of the two texts."""
        ratio, hunks, change = alignment.edit_ratio, len(alignment.operations), abs(length_change(original, edited))
        if not ratio:
            return "identical", "No word was changed."
        if change > self.max_length_change:
            limit = f"at most {self.max_length_change:.0%} is allowed"
            return "length", f"The length went from {len(original)} to {len(edited)} characters; {limit}."
        if ratio > self.max_edit_ratio:
            return "edit_ratio", f"{ratio:.0%} of the words were changed; at most {self.max_edit_ratio:.0%} may be."
        if hunks > self.max_hunks:
            return "hunks", f"The answer was changed in {hunks} places; at most {self.max_hunks} may be."
        return EDITED, ""

    def settings(self) -> dict[str, Any]:
        """The arguments in a form that can be written as JSON."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.score is not None:
            settings["score"] = getattr(self.score, "__qualname__", type(self.score).__name__)
        return settings


def length_change(original: str, edited: str) -> float:
    """By which share of the original's characters the edit is longer, or shorter if it is below 0."""
    return len(edited) / len(original) - 1


class Task(NamedTuple):
    """One answer to edit.

    Args:
        row (`int`):
            The row's number in the data set.
        digest (`str`):
            Of what the row says.
        prompt (`str` or `list[dict]`):
            As [`~data.preprocessing.preference_prompt`] gives it.
        answer (`str`):
            The rejected answer.
        unfit (`str`):
            Why there is nothing to edit (`"several_turns"`, `"empty"`), or `""`.
        more (`dict`):
            Other columns that go along.
    """

    row: int
    digest: str
    prompt: Prompt
    answer: str
    unfit: str
    more: dict[str, Any]

    @property
    def key(self) -> tuple[int, str]:
        return self.row, self.digest

    def with_words(self, words: str) -> str:
        """The answer with other words. White space around an answer is the data set's affair, and nothing to learn from."""
        return self.answer.replace(self.answer.strip(), words.strip(), 1)


def read_tasks(dataset: Dataset, limit: int | None = None) -> list[Task]:
    """The tasks of a preference data set of texts, messages or whole dialogues, or of its first rows.

    Raises:
        `ValueError`: if there are no rows, or one is malformed or has another format than the first; the error names it.
    """
    check_least(limit=(1 if limit is None else limit, 1))
    if not isinstance(dataset, Dataset) or not len(dataset):
        raise ValueError(f"`dataset` must be a Dataset with rows, got {dataset!r}.")
    dataset = dataset.with_format(None)
    tasks, format = [], None
    for index, row in enumerate(dataset if limit is None else dataset.take(min(limit, len(dataset)))):
        task, format = _read_row(row, index, format)
        tasks.append(task)
    return tasks


def _read_row(row: dict[str, Any], index: int, format: str | None) -> tuple[Task, str]:
    """The task of one row, and the format that it has, which must be `format` unless that is `None`."""
    try:
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
        answer = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "assistant" else None
        unfit = "" if isinstance(answer, str) else "several_turns"
    elif own == "dialogue":
        if not prompt:
            raise ValueError(f"Row {index} of the data set: the two dialogues share no {ASSISTANT!r}.")
        answer = answer.removeprefix(prompt)
        unfit = "several_turns" if HUMAN in answer or ASSISTANT in answer else ""
    answer = answer if isinstance(answer, str) else ""
    unfit = unfit or ("" if answer.strip() else "empty")
    more = {column: row[column] for column in ("tools", "chat_template_kwargs") if column in row}
    digest = hashlib.sha256(json.dumps([prompt, row["rejected"]], sort_keys=True).encode()).hexdigest()
    return Task(index, digest[:16], prompt, answer, unfit, more), own


class EditLog:
    """A JSON Lines file that is only appended to. Its first line has the settings of all others.

    Args:
        path (`Path`):
            The file. If there is none, it is begun.
        settings (`dict`):
            What must stay the same from run to run.
        names (`Sequence[str]`):
            What every other line must have.
        more (`Any`):
            More for the first line, which may change.

    Attributes:
        lines (`list[dict]`):
            The lines that were there, but the first.

    Raises:
        `ValueError`: if the file is something else, or was begun with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], names: Sequence[str], **more: Any):
        self.path = path
        lines = read_log(path, names)
        settings = json.loads(json.dumps(settings))
        if not lines:
            self.append({"settings": settings, **more})
        else:
            before = lines[0].get("settings", {})
            changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            if changed:
                raise ValueError(
                    f"{path} was begun with other settings ({', '.join(changed)}). Go on with those, or name another output."
                )
        self.lines = lines[1:]

    def append(self, *lines: dict[str, Any]) -> None:
        """Writes lines. When this returns, they are on the disk; when it raises, none of them is in the file."""
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:  # a full disk, say: what comes next must not be written after half a line
                file.truncate(end)
                raise


def read_log(path: Path, names: Sequence[str], repair: bool = True) -> list[dict[str, Any]]:
    """The lines of an [`EditLog`], the one with the settings first; none if there is no file. `repair` as of [`read_jsonl`]."""
    return read_jsonl(
        path, "the log", "row", lambda line: "settings" in line or [line[name] for name in names], repair=repair
    )


def edited_row(task: Task, edited: str, **more: Any) -> dict[str, Any]:
    """A row for [`TokenRewardTrainer`]: `chosen` is the edit, `rejected` the original."""
    sides: dict[str, Any] = {"chosen": edited, "rejected": task.answer}
    if not isinstance(task.prompt, str):
        sides = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": task.prompt, **sides, **task.more, "row": task.row, **more}


def edited_features(features: Features, task: Task) -> Features:
    """The columns of [`edited_row`], given those of the data set."""
    kinds = dict.fromkeys(("prompt", "chosen", "rejected"), features["rejected"])
    kinds |= {column: features[column] for column in ("prompt", *task.more) if column in features}
    return Features({**kinds, "row": Value("int64")})


def save_edits(
    output: Path, rows: list[dict[str, Any]], set_aside: list[dict[str, Any]], features: Features
) -> Dataset:
    """Writes the edited rows as `save_to_disk` does, and those set aside to `set_aside.jsonl`."""
    for shard in output.glob("data-*.arrow"):  # an earlier result may have had more of them
        shard.unlink()
    columns = {column: [row[column] for row in rows] for column in features}  # there may be no rows
    dataset = Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(str(output), num_shards=None if rows else 1)  # without a shard it could not be loaded
    lines = "".join(json.dumps(row) + "\n" for row in set_aside)
    (output / "set_aside.jsonl").write_text(lines, encoding="utf-8")
    return dataset


_CARD_HEAD = """\
---
tags:
- trl-tokenreward
- preference
configs:
- config_name: default
  data_files: "*.arrow"
---

# Minimally edited answers

"""


def edit_card(
    introduction: str, counts: dict[str, int], summary: str, settings: dict[str, Any], sections: dict[str, str]
) -> str:
    """A data card: the number of rows by outcome, the settings, and sections by their titles."""
    paragraphs = [
        f"{introduction} It is made for `TokenRewardTrainer` of trl-tokenreward. `datasets.load_from_disk` reads the folder; "
        "from the Hub, `load_dataset` does.",
        "## Rows",
        markdown("outcome", "rows", counts),
        summary,
        "## Settings",
        markdown("setting", "", {name: f"`{value}`" for name, value in settings.items()}),
    ]
    for title, text in sections.items():
        paragraphs += [f"## {title}", text]
    return _CARD_HEAD + "\n\n".join(paragraphs) + "\n"


def quoted(text: str) -> str:
    """A text as a card shows it: as it is."""
    return f"````\n{text}\n````"
