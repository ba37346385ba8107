"""Storage of annotations: which rows annotators have open, and their decisions.

[`~annotation.server`] serves the page. The store is an output folder:

- `annotations.jsonl`, to which each decision is appended (an [`~editing.log.EditLog`]). A later decision of the same
  annotator on the same row replaces an earlier one;
- `drafts`, one file for each row that an annotator has open, with the unsaved text. The file also claims the row, so
  after a restart nobody else gets it.
"""

import hashlib
import json
import re
import secrets
import statistics
import threading
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import regex
from datasets import Dataset, Features

from ..data.formats import ASSISTANT, HUMAN, given_columns
from ..editing.checks import DEFAULT_CRITERIA, EDITED, EditChecks, length_change
from ..editing.log import EditLog
from ..editing.tasks import Task, as_pairs, line_breaks, read_tasks
from ..edits.alignment import align_words
from ..edits.diff import diff_pieces
from ..utils.files import check_own_folder, lock_folder, write_text
from ..utils.jsonl import parse_json
from ..utils.loading import fingerprint
from ..utils.messages import message_text
from ..utils.text import unicode_problem, visible
from ..utils.validation import check_least, check_share


NOTHING_WRONG = "nothing_wrong"
SKIP_REASONS = {
    NOTHING_WRONG: "Nothing is wrong with it",
    "rewrite": "It takes more than a minimal edit",
    "unclear": "I cannot tell what is wrong",
    "broken": "The text is broken or cut off",
    "other": "Another reason",
}
UNFIT = {
    "several_turns": "several turns differ",
    "more_than_text": "the rejected answer is more than a text, such as a call of a tool",
    "empty": "the rejected answer is empty",
}

LOG = "annotations.jsonl"
LOG_NAMES = ("row", "hash", "annotator", "reason", "detail", "edited", "edit_ratio", "time", "prompt", "answer", "more")
# `\w` of `re` has no combining marks, without which names of many scripts cannot be written.
_NAME = regex.compile(r"[\p{L}\p{M}\p{N}_ .'’@+-]{1,40}")
_LONGEST_DETAIL, _LONGEST_TAB = 1_000, 100
_ROOM = 10_000  # characters that a text may have more than the checks allow, so that a draft can be long
_LONGEST_PAUSE = 600.0  # seconds; a longer pause does not count as work on a row


class Refused(ValueError):
    """A request that the store refuses. The message is shown to the annotator."""


class OtherTab(Refused):
    """The row is open in a later tab of the same annotator."""


@dataclass
class Draft:
    """A row that an annotator has open. `text` is `None` until they change something."""

    row: int
    annotator: str
    text: str | None
    time: float


class AnnotationStore:
    """Keeps annotations. Every method writes to disk before it returns. A folder can be open in one store at a time;
    methods may be called from several threads.

    Args:
        dataset (`Dataset`):
            As of [`~editing.edit_dataset.edit_dataset`].
        output (`str` or `Path`):
            A new folder, or one of the same data set and settings, to go on with.
        checks ([`EditChecks`], *optional*):
            With the defaults, if not given. Without a `score`.
        criteria (`str`, *optional*):
            What the edited answers must meet, for annotators to read.
        limit (`int`, *optional*):
            Have the first rows annotated only. It may change from run to run, as the next four may.
        per_row (`int`, *optional*, defaults to `1`):
            How many annotators a row is given to.
        overlap (`float`, *optional*):
            The share of rows, spread evenly, that is given to `per_row` annotators; the others are given to one.
        free_after (`float`, *optional*, defaults to `1800.0`):
            Seconds without a keystroke after which a row that was given out may be given to someone else.
        about (`dict`, *optional*):
            More for the data card, such as where the data set is from.
        on_decision (`Callable`, *optional*):
            Called with one line of text for each decision.

    Raises:
        `ValueError`: for a bad argument or row, or if the folder is in use or is another data set's.
    """

    def __init__(
        self,
        dataset: Dataset,
        output: str | Path,
        *,
        checks: EditChecks | None = None,
        criteria: str = DEFAULT_CRITERIA,
        limit: int | None = None,
        per_row: int = 1,
        overlap: float | None = None,
        free_after: float = 1800.0,
        about: dict[str, Any] | None = None,
        on_decision: Callable[[str], None] | None = None,
    ):
        self.checks, self.criteria, self.output = checks or EditChecks(), criteria, Path(output)
        if self.checks.score is not None:
            raise ValueError("`checks` has a `score`, but people's edits are not held against a model: leave it out.")
        if not criteria.strip():
            raise ValueError("`criteria` is empty.")
        check_least(per_row=(per_row, 1), free_after=(free_after, 1))
        if overlap is not None and per_row == 1:
            raise ValueError("`overlap` has no effect where `per_row` is 1: set how many annotators those rows get.")
        check_share(overlap=overlap)
        for name, value in (("criteria", criteria), ("about", about)):
            if problem := unicode_problem(value):
                raise ValueError(f"`{name}` {problem}")
        check_own_folder(self.output, LOG)
        dataset = as_pairs(dataset)
        tasks = read_tasks(dataset, limit)
        self._dataset = dataset.with_format(None)
        self.tasks = {task.row: task for task in tasks if not task.unfit}
        self.unfit = Counter(task.unfit for task in tasks if task.unfit)
        shared = 1.0 if overlap is None else overlap
        self._needed = {
            row: per_row if int((place + 1) * shared) > int(place * shared) else 1
            for place, row in enumerate(self.tasks)
        }
        columns = [column for column in _COLUMNS if column in dataset.column_names]
        self.fingerprint = fingerprint(self._dataset.select_columns(columns))
        self._free_after, self._on_decision = free_after, on_decision

        self._file_lock = lock_folder(self.output)
        self._lock = threading.RLock()
        try:
            self._open_log(tasks, about or {})
            self._open_drafts()
        except BaseException:
            self.close()
            raise

    def _open_log(self, tasks: list[Task], about: dict[str, Any]) -> None:
        settings = {"data set": self.fingerprint, "checks": self.checks.settings(), "criteria": self.criteria}
        features = {column: kind for column, kind in self._dataset.features.items() if column in _COLUMNS}
        more = {"id": secrets.token_hex(8), "about": about, "features": Features(features).to_dict()}
        self._log = EditLog(self.output / LOG, settings, LOG_NAMES, **more)
        # Tells this work from another in one browser. Earlier versions gave none.
        self.id: str = self._log.head.get("id", self.fingerprint)
        # In the order in which a row was first decided.
        self._decisions: dict[tuple[int, str], dict[str, Any]] = {}
        self._deciders: dict[int, set[str]] = defaultdict(set)
        self._tabs: dict[tuple[int, str], str] = {}
        dropped = set()
        for record in self._log.lines:
            if record["annotator"]:
                self._take(record)
            else:
                dropped.add(record["row"])
        unfit = [task for task in tasks if task.unfit and task.row not in dropped]
        self._log.append(*(_record(task, "", task.unfit) for task in unfit))

    def _open_drafts(self) -> None:
        self._drafts: dict[tuple[int, str], Draft] = {}
        self._drafts_folder = self.output / "drafts"
        self._drafts_folder.mkdir(exist_ok=True)
        for path in sorted(self._drafts_folder.glob("*.json")):
            draft = _read_draft(path)
            key = draft.row, draft.annotator
            done = self._decisions.get(key)
            superseded = done and done["reason"] == EDITED and done["time"] >= draft.time
            if superseded or (done and draft.text is None):  # the server was killed before it removed it
                path.unlink()
            elif draft.row in self.tasks:  # the limit may have been higher
                self._drafts[key] = draft

    def close(self) -> None:
        """Lets go of the folder."""
        self._file_lock.release()

    # What the page asks for

    def about(self) -> dict[str, Any]:
        """Settings and counts that are the same for all rows."""
        limits = self.checks.settings()
        limits.pop("score")
        unfit = {UNFIT[reason]: count for reason, count in self.unfit.items()}
        with self._lock:
            names = sorted({name for _, name in self._decisions})
        return {
            "id": self.id,
            "criteria": visible(self.criteria.strip()),
            "limits": limits,
            "skip_reasons": SKIP_REASONS,
            "unfit": unfit,
            "annotators": names,
        }

    def show(self, annotator: str, tab: str, row: int | None = None) -> dict[str, Any]:
        """A row of the annotator, or by default the next one to do, and the progress. The row now belongs to this
        tab."""
        with self._lock:
            _check_tab(tab)
            row = self._next(annotator) if row is None else self._own(annotator, row)
            shown = {"row": row, **self._neighbours(annotator, row), "progress": self.progress(annotator)}
            if row is None:
                return shown
            task, key = self.tasks[row], (row, annotator)
            self._tabs[key] = tab
            draft, done = self._drafts.get(key), self._decisions.get(key)
            if done is None:
                draft = self._keep(annotator, row, None if draft is None else draft.text)
            saved = self._saved(key)
            text = saved if draft is None or draft.text is None else draft.text
            preferred = _preferred(self._dataset[row], task)
        return shown | {
            "turns": prompt_turns(task.prompt),
            "preferred": preferred,
            "original": _shown(task.answer),
            "saved": saved,
            "text": text,
            "outcome": done and done["reason"],
            "comment": done and done["detail"],
            **self._judge(task, text),
        }

    def check(self, annotator: str, tab: str, row: int, text: str, take: bool = False) -> dict[str, Any]:
        """Stores the unsaved text and returns the result of the checks. `take` claims the row for this tab."""
        with self._lock:
            key = self._claim(annotator, tab, row, take)
            self._check_text(row, text)
            saved = self._saved(key)
            if text == saved and key in self._decisions:
                self._forget(key)
            else:
                self._keep(annotator, row, None if text == saved else text)
        return self._judge(self.tasks[row], text)

    def save(self, annotator: str, tab: str, row: int, text: str) -> dict[str, Any]:
        """Saves an edit.

        Raises:
            `Refused`: if the checks refuse it.
        """
        with self._lock:
            self._claim(annotator, tab, row)
            self._check_text(row, text)
        task = self.tasks[row]
        judged = self._judge(task, text)  # this may take a while, so it runs without the lock
        if judged["reason"] != EDITED:
            raise Refused(judged["detail"])
        record = _record(task, annotator, EDITED, edited=_edited(task, text), edit_ratio=judged["edit_ratio"])
        with self._lock:
            key = self._claim(annotator, tab, row)
            self._decide(record)
            self._forget(key)
        return judged

    def skip(self, annotator: str, tab: str, row: int, reason: str, detail: str = "", text: str | None = None) -> None:
        """Writes down that there is no edit, and why. What was typed stays as a draft."""
        if problem := unicode_problem(detail):
            raise Refused(f"The reason {problem}")
        if len(detail) > _LONGEST_DETAIL:
            raise Refused(f"The reason has {len(detail)} characters; it may have {_LONGEST_DETAIL}.")
        if reason not in SKIP_REASONS:
            raise Refused(f"There is no such reason as {reason!r}.")
        if reason == "other" and not detail.strip():
            raise Refused("Say what the reason is.")
        with self._lock:
            key = self._claim(annotator, tab, row)
            self._check_text(row, text or "")
            self._decide(_record(self.tasks[row], annotator, reason, detail=detail.strip()))
            if text is None or text == self._saved(key):
                self._forget(key)
            else:
                self._keep(annotator, row, text)

    def leave(self, annotator: str) -> None:
        """Frees the rows that the annotator was given and has not touched."""
        with self._lock:
            for key, draft in [*self._drafts.items()]:
                if draft.annotator == annotator and draft.text is None:
                    self._forget(key)

    def progress(self, annotator: str) -> dict[str, Any]:
        """How many rows the annotator has decided and may still get; how many decisions there are of how many; and the
        seconds that the annotator's rest takes at the pace so far, if that is known."""
        with self._lock:
            holders = self._holders()
            left = sum(self._is_open(row, annotator, holders) for row in self.tasks)
            done = sum(min(len(self._deciders[row]), needed) for row, needed in self._needed.items())
            times = sorted(record["time"] for (_, name), record in self._decisions.items() if name == annotator)
            pauses = [end - start for start, end in zip(times, times[1:], strict=False)]
            pauses = [pause for pause in pauses if pause <= _LONGEST_PAUSE]
            return {
                "mine": len(times),
                "left": left,
                "done": done,
                "needed": sum(self._needed.values()),
                "seconds": round(statistics.median(pauses) * left) if len(pauses) >= 3 else None,
            }

    # Whose row is it?

    def _holders(self) -> dict[int, set[str]]:
        """Who has a row before them and has not been away for long."""
        holders, oldest = defaultdict(set), time.time() - self._free_after
        for (row, name), draft in self._drafts.items():
            if draft.time >= oldest:
                holders[row].add(name)
        return holders

    def _is_open(self, row: int, annotator: str, holders: dict[int, set[str]]) -> bool:
        """True if the row may still be given to the annotator."""
        deciders = self._deciders.get(row, set())
        if annotator in deciders:
            return False
        return len((deciders | holders.get(row, set())) - {annotator}) < self._needed[row]

    def _next(self, annotator: str) -> int | None:
        holders = self._holders()
        for (row, name), draft in sorted(self._drafts.items()):
            if name == annotator and annotator not in self._deciders.get(row, ()):
                if draft.text is not None or self._is_open(row, annotator, holders):
                    return row
                self._forget((row, name))  # it was given to someone else while they were away
        return next((row for row in self.tasks if self._is_open(row, annotator, holders)), None)

    def _rows_of(self, annotator: str) -> list[int]:
        rows = [row for row, name in self._decisions if name == annotator and row in self.tasks]
        given = sorted(row for row, name in self._drafts if name == annotator)
        return [*rows, *(row for row in given if annotator not in self._deciders.get(row, ()))]

    def _neighbours(self, annotator: str, row: int | None) -> dict[str, Any]:
        rows = self._rows_of(annotator)
        place = rows.index(row) if row in rows else len(rows)
        following = rows[place + 1] if place + 1 < len(rows) else None
        return {"place": place + 1, "previous": rows[place - 1] if place else None, "following": following}

    def _own(self, annotator: str, row: int) -> int:
        if (row, annotator) not in self._decisions and (row, annotator) not in self._drafts or row not in self.tasks:
            raise Refused(f"Row {row} was not given to {annotator}, or was given to someone else in the meantime.")
        return row

    def _claim(self, annotator: str, tab: str, row: int, take: bool = False) -> tuple[int, str]:
        """The row's key, if it is the annotator's and no later tab has it."""
        key = self._own(annotator, row), annotator
        _check_tab(tab)
        if take:
            self._tabs[key] = tab
        if self._tabs.setdefault(key, tab) != tab:
            raise OtherTab("This row is open in another tab of yours, which was opened later.")
        return key

    def _check_text(self, row: int, text: str) -> None:
        """Raises [`Refused`] for what cannot be kept: what is no text, and a text that takes long to align."""
        if problem := unicode_problem(text):
            raise Refused(f"The text {problem}")
        most = round(len(self.tasks[row].answer) * (1 + self.checks.max_length_change)) + _ROOM
        if len(text) > most:
            raise Refused(f"The text has {len(text)} characters; it may have {most} here.")

    # What is written

    def _saved(self, key: tuple[int, str]) -> str:
        """The initial text of the text field: the annotator's saved edit, or the original."""
        done = self._decisions.get(key)
        return _shown(done["edited"] if done and done["edited"] is not None else self.tasks[key[0]].answer)

    def _judge(self, task: Task, text: str) -> dict[str, Any]:
        edited = _edited(task, text)
        alignment = align_words(task.answer, edited)
        reason, detail = self.checks.check_size(task.answer, edited, alignment)
        pieces = [[piece.kind, visible(piece.text)] for piece in diff_pieces(task.answer, edited, alignment)]
        return {
            "pieces": pieces,
            "edit_ratio": alignment.edit_ratio,
            "hunks": len(alignment.operations),
            "length_change": length_change(task.answer, edited),
            "reason": reason,
            "detail": detail,
        }

    def _decide(self, record: dict[str, Any]) -> None:
        self._log.append(record)
        self._take(record)
        if self._on_decision is not None:
            progress = self.progress(record["annotator"])
            what = f"edited {record['edit_ratio']:.0%} of" if record["reason"] == EDITED else "skipped"
            why = "" if record["reason"] == EDITED else f" ({record['reason']})"
            count = f"{progress['done']} of {progress['needed']}"
            self._on_decision(f"{count}: {record['annotator']} {what} row {record['row']}{why}")

    def _take(self, record: dict[str, Any]) -> None:
        self._decisions[record["row"], record["annotator"]] = record
        self._deciders[record["row"]].add(record["annotator"])

    def _draft_path(self, row: int, annotator: str) -> Path:
        return self._drafts_folder / _draft_name(row, annotator)

    def _keep(self, annotator: str, row: int, text: str | None) -> Draft:
        draft = Draft(row, annotator, text, time.time())
        write_text(self._draft_path(row, annotator), json.dumps(asdict(draft)))
        self._drafts[row, annotator] = draft
        return draft

    def _forget(self, key: tuple[int, str]) -> None:
        if self._drafts.pop(key, None) is not None:
            self._draft_path(*key).unlink(missing_ok=True)


def _draft_name(row: int, annotator: str) -> str:
    return f"{row}-{hashlib.sha256(annotator.encode()).hexdigest()[:16]}.json"


def _read_draft(path: Path) -> Draft:
    try:
        draft = Draft(**parse_json(path.read_bytes()))
        kinds: tuple[Any, ...] = (int, str, str | None, int | float)
        types_fit = all(isinstance(value, kind) for value, kind in zip(asdict(draft).values(), kinds, strict=True))
        if not types_fit or unicode_problem(asdict(draft)) or path.name != _draft_name(draft.row, draft.annotator):
            raise ValueError("it is another file")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no draft of an annotator ({error}): move it out of the folder.") from error
    return draft


_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")


def _record(task: Task, annotator: str, reason: str, **more: Any) -> dict[str, Any]:
    """A line of the log. It holds everything needed to read it without the data set."""
    row = {"row": task.row, "hash": task.hash, "annotator": annotator, "reason": reason}
    outcome = {"detail": "", "edited": None, "edit_ratio": None, **more, "time": time.time()}
    return row | outcome | {"prompt": task.prompt, "answer": task.answer, "more": task.more}


def _check_tab(tab: str) -> None:
    if len(tab) > _LONGEST_TAB:
        raise Refused(f"A tab's name has at most {_LONGEST_TAB} characters.")


def annotator_name(text: str) -> str:
    """A name as it is written down.

    Raises:
        `Refused`: if it has other characters than letters, digits, spaces and `.'’@+-_`, or more than 40.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not _NAME.fullmatch(name) or not any(char.isalnum() for char in name):
        raise Refused("A name has 1 to 40 letters, digits, spaces and .'’@+-_")
    return name


def prompt_turns(prompt: str | list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A prompt as turns, each with its role (`""` where there is none) and its text, to be shown."""
    if not isinstance(prompt, str):
        return [(visible(str(message["role"])), _read(message)) for message in prompt]
    parts = re.split(f"({HUMAN}|{ASSISTANT})", prompt)
    roles = ["", *(mark.strip().rstrip(":") for mark in parts[1::2])]
    turns = zip(roles, parts[::2], strict=True)
    return [(role, visible(text.strip())) for role, text in turns if text.strip()]


def _read(message: dict[str, Any]) -> str:
    return visible(message_text(message).strip())


def _preferred(row: dict[str, Any], task: Task) -> str:
    row = given_columns(row)
    if isinstance(task.prompt, str):
        return visible(row["chosen"].removeprefix("" if "prompt" in row else task.prompt).strip())
    messages = row["chosen"][0 if "prompt" in row else len(task.prompt) :]
    return "\n\n".join(map(_read, messages))


def _shown(answer: str) -> str:
    """An answer as a text field has it: without the white space around it, and with `\\n` for every line break."""
    return line_breaks(answer.strip())


def _edited(task: Task, text: str) -> str:
    """The edited answer, given the text of a text field."""
    return task.with_words(line_breaks(text))
