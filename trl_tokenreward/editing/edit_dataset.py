"""Has a language model minimally edit a data set, with checks, retries and a log to resume from."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from ..utils.chat_endpoint import EndpointError, EndpointUsage, Unanswered, check_template, fill_template
from ..utils.files import check_own_folder, lock_folder, write_text
from ..utils.text import quoted_start, unicode_problem, visible
from ..utils.threads import stopping_threads
from ..utils.validation import check_least
from .checks import DEFAULT_CRITERIA, EDITED, EditChecks
from .editors import _RETRY, DEFAULT_TEMPLATE, Editor
from .log import EditLog
from .output import edit_card, edited_features, edited_row, quoted, save_edits
from .tasks import Task, as_pairs, read_tasks


# Failures that do not depend on the row: the next run tries these rows again.
FAILURES = ("request_failed", "not_scored")
REASONS = (
    *("several_turns", "more_than_text", "empty", "unparsed", "not_unicode"),
    *("identical", "length", "edit_ratio", "hunks", "not_better"),
    *FAILURES,
)
# After this many failures in a row, the cause is not the rows.
_MOST_FAILURES = 20


@dataclass
class EditResult:
    """The result of [`edit_dataset`].

    Attributes:
        dataset (`Dataset`):
            The kept rows.
        counts (`dict[str, int]`):
            `"edited"` rows, and those dropped by reason.
        usage ([`~utils.chat_endpoint.EndpointUsage`]):
            Of all runs that wrote to this output.
        cost (`float` or `None`):
            Of the same, in the currency of the editor's `prices`.
    """

    dataset: Dataset
    counts: dict[str, int]
    usage: EndpointUsage
    cost: float | None

    def describe(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items() if reason != EDITED)
        tokens = f"{self.usage.prompt_tokens} prompt tokens and {self.usage.completion_tokens} completion tokens"
        return (
            f"{self.counts[EDITED]} of {sum(self.counts.values())} rows were edited"
            + (f"; dropped: {reasons}" if reasons else "")
            + f". {self.usage.requests} requests took {tokens}"
            + ("." if self.cost is None else f", which cost {self.cost:.4f}.")
        )


class _Log(EditLog):
    """The log of finished rows. Each row is written as soon as it is finished."""

    def __init__(self, path: Path, settings: dict[str, Any], usage: EndpointUsage):
        super().__init__(path, settings, names=("row", "hash", "reason", "detail", "edited", "answer", "used"))
        self._usage, self._counted = usage, asdict(usage)
        self._lock, self._failures = threading.Lock(), 0
        self.records = {(record["row"], record["hash"]): record for record in self.lines}
        # What failed in an earlier run may do so for a reason of its own: it comes last, and counts no more.
        self.failed_before = {key for key, record in self.records.items() if record["reason"] in FAILURES}
        self.used: Counter[str] = Counter()
        for record in self.lines:
            self.used.update(record["used"])

    def done(self, task: Task) -> bool:
        record = self.records.get(task.key)
        # Earlier versions logged edits that are not Unicode text, which no data set can hold.
        return record is not None and record["reason"] not in FAILURES and not unicode_problem(record["edited"])

    def add(self, task: Task, **record: Any) -> None:
        """Appends a row, with the usage since the last line. The sum over the lines is the total usage."""
        with self._lock:
            now = asdict(self._usage)
            used = {name: count - self._counted[name] for name, count in now.items()}
            record = {"row": task.row, "hash": task.hash, **record, "used": used}
            self.append(record)
            self._counted = now
            self.used.update(used)
            self.records[task.key] = record
            if record["reason"] not in FAILURES:
                self._failures = 0
            elif task.key not in self.failed_before:
                self._failures += 1
            if self._failures >= _MOST_FAILURES:
                raise EndpointError(
                    f"{self._failures} rows failed one after the other, the last (row {task.row}) with: "
                    f"{record['detail']} What was edited is in {self.path}; run it again to go on."
                )


def edit_dataset(
    dataset: Dataset,
    editor: Editor,
    output: str | Path,
    *,
    criteria: str = DEFAULT_CRITERIA,
    template: str = DEFAULT_TEMPLATE,
    checks: EditChecks | None = None,
    retries: int = 2,
    accept_unchanged: bool = False,
    limit: int | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
) -> EditResult:
    """Have an editor minimally edit the rejected answer of each row.

    Each edit is checked, see [`EditChecks`]. After a failure the row is requested again, with the failure in the
    request and at a higher temperature. If all attempts fail, the row is dropped with its reason: one of
    `EditChecks`'s, or

    - `"unparsed"`: the editor's answer has nothing between `<edited>` and `</edited>`;
    - `"not_unicode"`: it has half of a character in it;
    - `"several_turns"`, `"more_than_text"` (calls of tools, a reasoning, an image) or `"empty"`: the row has no single
      text to edit, so nothing was requested;
    - `"request_failed"` or `"not_scored"`: the next run tries these rows again.

    The folder `output` gets:

    - `log.jsonl`, to which each row is appended as it is done. A run that was killed and is called again with the same
      arguments repeats none of these; other settings are an error;
    - the data set as `save_to_disk` writes it: `prompt`, `chosen` (the edit), `rejected` (the original) and `row` (its
      number in `dataset`);
    - `dropped.jsonl`, the other rows with their reasons;
    - `README.md`, a data card.

    Args:
        dataset (`Dataset`):
            Preference rows in any of the formats of texts or messages that [`TokenRewardTrainer`] takes; of `chosen` no
            more is read than what tells the prompt. Or rows of `prompt` and `completion`, such as a policy's answers.
        editor ([`Editor`]):
            Such as [`~editing.editors.EndpointEditor`] or [`~editing.editors.LocalEditor`].
        output (`str` or `Path`):
            A folder. Only one call at a time may write to it.
        criteria (`str`, *optional*):
            What the edited answers must meet.
        template (`str`, *optional*):
            The request, with `{prompt}`, `{answer}` and `{criteria}`. It must ask for the edited answer between
            `<edited>` and `</edited>`; where an answer has several, the last one counts.
        checks ([`EditChecks`], *optional*):
            With the defaults, if not given.
        retries (`int`, *optional*, defaults to `2`):
            How often a refused edit is asked for again.
        accept_unchanged (`bool`, *optional*, defaults to `False`):
            If `True`, an answer that comes back unchanged is not asked for again: it may be right. It is dropped as
            `"identical"` all the same, for there is nothing to learn from.
        limit (`int`, *optional*):
            Edit the first rows only. It may change from run to run.
        about (`dict`, *optional*):
            More for the data card, such as where the data set is from.
        progress (`bool`, *optional*, defaults to `True`):
            If `True`, shows a progress bar.

    Returns:
        [`EditResult`].

    Raises:
        `ValueError`: for a bad argument or row, or if another call writes to `output`; before anything is asked.
        `EndpointError`: if the endpoint refuses us, or if 20 rows fail one after the other.
    """
    check_template(template, ("{prompt}", "{answer}", "{criteria}", "<edited>", "</edited>"))
    if not criteria.strip():
        raise ValueError("`criteria` is empty.")
    for name, text in (("criteria", criteria), ("template", template), ("about", about)):
        if problem := unicode_problem(text):
            raise ValueError(f"`{name}` {problem}")
    check_least(retries=(retries, 0))
    dataset = as_pairs(dataset)
    tasks = read_tasks(dataset, limit)
    checks, output = checks or EditChecks(), Path(output)
    check_own_folder(output, "log.jsonl")
    settings = {"about": about or {}, "editor": editor.settings, "retries": retries, "checks": checks.settings()}
    settings |= {"criteria": criteria, "template": template}
    settings |= {"accept_unchanged": True} if accept_unchanged else {}
    lock = lock_folder(output)
    try:
        log = _Log(output / "log.jsonl", settings, editor.usage)
        how: dict[str, Any] = {"checks": checks, "criteria": criteria, "template": template, "retries": retries}
        how["accepted"] = (EDITED, "identical") if accept_unchanged else (EDITED,)
        edit = partial(_edit_rows, editor=editor, log=log, **how)
        _edit_tasks([task for task in tasks if not task.unfit], editor, log, edit, progress)
        kept, counts = _write_rows(output, tasks, log, dataset)
        usage = EndpointUsage(**{field.name: log.used[field.name] for field in fields(EndpointUsage)})
        result = EditResult(kept, counts, usage, usage.cost(editor.prices))
        write_text(output / "README.md", _card(result, settings))
        return result
    finally:
        lock.release()


def _edit_tasks(
    tasks: list[Task], editor: Editor, log: _Log, edit: Callable[[list[Task]], None], progress: bool
) -> None:
    """Has `edit` do what the log does not have yet, in as many threads as the editor allows."""
    left = sorted((task for task in tasks if not log.done(task)), key=lambda task: task.key in log.failed_before)
    chunks = [left[start : start + editor.batch_size] for start in range(0, len(left), editor.batch_size)]
    bar = tqdm(total=len(tasks), initial=len(tasks) - len(left), desc="Editing answers", disable=not progress)

    def edit_or_stop(chunk: list[Task]) -> None:
        try:
            edit(chunk)
        except BaseException:  # a full disk, for example: what the others ask for now would be paid for and lost
            editor.stopped.set()
            raise

    with bar, stopping_threads(editor.concurrency, editor.stopped) as executor:
        futures = {executor.submit(edit_or_stop, chunk): len(chunk) for chunk in chunks}
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])


def _edit_rows(
    tasks: list[Task],
    *,
    editor: Editor,
    log: _Log,
    checks: EditChecks,
    criteria: str,
    template: str,
    retries: int,
    accepted: tuple[str, ...],
) -> None:
    """Edits rows and logs each as soon as it is edited, or dropped."""
    problems = [""] * len(tasks)
    for attempt in range(retries + 1):
        if editor.stopped.is_set():
            return
        requests = [
            fill_template(template, task.prompt, answer=task.answer, criteria=criteria)
            + (_RETRY.format(problem=problem) if problem else "")
            for task, problem in zip(tasks, problems, strict=True)
        ]
        refused = []
        texts = [task.prompt for task in tasks], [task.answer for task in tasks]
        for task, answer in zip(tasks, editor.edit(*texts, requests, attempt), strict=True):
            edited, reason, detail = _check_answer(task, answer, editor, checks)
            if reason in accepted or reason in FAILURES or attempt == retries:
                said = None if isinstance(answer, Unanswered) else answer
                if said is not None and unicode_problem(said):  # `dropped.jsonl` has it, and must load
                    said = visible(said)
                log.add(task, reason=reason, detail=detail, edited=edited, answer=said, attempts=attempt + 1)
            else:
                refused.append((task, detail))
        if not refused:
            return
        tasks, problems = zip(*refused, strict=True)


_score_lock = threading.Lock()


def _check_answer(
    task: Task, answer: str | Unanswered, editor: Editor, checks: EditChecks
) -> tuple[str | None, str, str]:
    """The edited answer or `None`, `"edited"` or the reason to drop it, and a sentence that explains it."""
    if isinstance(answer, Unanswered):
        return None, "request_failed", str(answer)
    if problem := unicode_problem(answer):
        return None, "not_unicode", f"The answer {problem}"
    words = editor.edited_words(answer)
    if words is None:
        return None, "unparsed", f"Nothing stands between <edited> and </edited>: {quoted_start(answer)}."
    edited = task.with_words(words)
    with _score_lock:  # a reward model may not be thread-safe
        return edited, *checks(task.prompt, task.answer, edited)


def _write_rows(output: Path, tasks: list[Task], log: _Log, dataset: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Writes the edited rows and those dropped, and counts them by reason."""
    rows, dropped = [], []
    counts: Counter[str] = Counter()
    for task in tasks:
        unfit = {"reason": task.unfit, "detail": "", "answer": None}
        record: dict[str, Any] = unfit if task.unfit else log.records[task.key]
        counts[record["reason"]] += 1
        if record["reason"] == EDITED:
            rows.append(edited_row(task, record["edited"]))
        else:
            reason = {name: record[name] for name in ("reason", "detail", "answer")}
            dropped.append({"row": task.row, **reason, "prompt": task.prompt, "rejected": task.answer})
    kept = save_edits(output, rows, dropped, edited_features(dataset.features, tasks[0]))
    return kept, {reason: counts[reason] for reason in (EDITED, *REASONS) if counts[reason] or reason == EDITED}


def _card(result: EditResult, settings: dict[str, Any]) -> str:
    return edit_card(
        "A language model minimally edited each rejected answer of a preference data set. `chosen` is the edit, "
        "`rejected` the original, `row` the row's number in the source.",
        result.counts,
        f"{result.describe()} What was dropped, with reasons, is in `dropped.jsonl`; every answer of the editor "
        "that counted is in `log.jsonl`.",
        {**settings["about"], **settings["editor"], **settings["checks"], "retries": settings["retries"]},
        {"Criteria": quoted(settings["criteria"]), "Prompt": quoted(settings["template"])},
    )
