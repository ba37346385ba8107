"""Reads what the annotation server stored: as a data set of edits, and as counts and agreement."""

import statistics
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..editing.checks import EDITED
from ..editing.log import read_log
from ..editing.output import edit_card, edited_features, edited_row, quoted, save_edits
from ..editing.tasks import Task
from ..utils.files import new_path, write_text
from ..utils.statistics import markdown, write_figures
from ..utils.text import visible
from .agreement import AgreementReport, EditedAnswer, measure_agreement
from .store import LOG, LOG_NAMES, NOTHING_WRONG, SKIP_REASONS, UNFIT


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Annotations:
    """The decisions of all annotators, see [`read_annotations`].

    Args:
        decisions (`list[dict]`):
            The last of each annotator on each row, by row and annotator: `row`, `annotator` (`""` for rows that cannot
            be annotated), `reason` (`"edited"`, or one of [`SKIP_REASONS`] or [`UNFIT`]), `detail`, `prompt`, `answer`,
            `edited`, `edit_ratio`, `time` (seconds since 1970).
        settings, about (`dict`):
            Those of the server.
        features (`Features`):
            Of the data set.
    """

    decisions: list[dict[str, Any]]
    settings: dict[str, Any]
    about: dict[str, Any]
    features: Features

    def counts(self) -> dict[str, int]:
        """Decisions by reason."""
        counts = Counter(decision["reason"] for decision in self.decisions)
        return {reason: counts[reason] for reason in (EDITED, *SKIP_REASONS, *UNFIT) if counts[reason]}

    def by_annotator(self) -> dict[str, dict[str, Any]]:
        """For each annotator: edits, skipped rows, median edit ratio."""
        people = {}
        for name in sorted({decision["annotator"] for decision in self.decisions if decision["annotator"]}):
            own = [decision for decision in self.decisions if decision["annotator"] == name]
            ratios = [decision["edit_ratio"] for decision in own if decision["reason"] == EDITED]
            median = statistics.median(ratios) if ratios else None
            people[name] = {"edited": len(ratios), "skipped": len(own) - len(ratios), "median edit ratio": median}
        return people

    def agreement(self, tokenizer: "PreTrainedTokenizerBase | None" = None, **kwargs: Any) -> AgreementReport:
        """How far annotators agree, by [`~annotation.agreement.measure_agreement`]. "Nothing is wrong" counts as an
        answer without marked words; other skipped rows do not count."""
        answers = [
            EditedAnswer(d["row"], d["annotator"], d["answer"], d["edited"] if d["reason"] == EDITED else d["answer"])
            for d in self.decisions
            if d["reason"] in (EDITED, NOTHING_WRONG)
        ]
        return measure_agreement(answers, tokenizer, **kwargs)

    def save(self, output: str | Path, agreement: AgreementReport | None = None) -> Dataset:
        """Writes a data set for [`TokenRewardTrainer`], as `save_to_disk` does, with a data card.

        It has a row for each edit: `prompt`, `chosen` (the edit), `rejected` (the original), `row`, `annotator` and
        `edit_ratio` (of words). `dropped.jsonl` has the other decisions with their reasons, `agreement.json` the
        report.

        Args:
            output (`str` or `Path`):
                A new folder.
            agreement ([`AgreementReport`], *optional*):
                [`agreement`], if not given.

        Raises:
            ValueError: If something is there already, or no row was edited.
        """
        output = Path(output)
        if output.exists():
            raise ValueError(f"{output} exists already: remove it, or give another name.")
        rows, dropped = [], []
        for d in self.decisions:
            if d["reason"] == EDITED:
                task = Task(d["row"], d["hash"], d["prompt"], d["answer"], "", d["more"])
                rows.append(edited_row(task, d["edited"], annotator=d["annotator"], edit_ratio=d["edit_ratio"]))
            else:
                names = ("row", "annotator", "reason", "detail", "prompt")
                dropped.append({**{name: d[name] for name in names}, "rejected": d["answer"]})
        if not rows:
            raise ValueError("No row was edited, so there is nothing to save.")
        features = edited_features(self.features, task)
        features |= {"annotator": Value("string"), "edit_ratio": Value("float64")}
        agreement = agreement or self.agreement()
        output.parent.mkdir(parents=True, exist_ok=True)
        with new_path(output) as new:
            new.mkdir()
            dataset = save_edits(new, rows, dropped, Features(features))
            write_figures(new / "agreement.json", agreement.to_dict())
            write_text(new / "README.md", self._card(agreement))
        return dataset

    def _card(self, agreement: AgreementReport) -> str:
        people = self.by_annotator()
        rows = {name: " | ".join(map(_cell, figures.values())) for name, figures in people.items()}
        days = [datetime.fromtimestamp(d["time"], UTC).date() for d in self.decisions]
        checks = {name: value for name, value in self.settings["checks"].items() if value is not None}
        return edit_card(
            "People minimally edited rejected answers of a preference data set. `chosen` is the edit, `rejected` the "
            "original, `row` the row's number in the source, `annotator` who edited it and `edit_ratio` the share of "
            "edited words. A row that several people edited is there several times.",
            self.counts(),
            f"From {min(days)} to {max(days)}, in UTC. What was dropped, with reasons, is in `dropped.jsonl`.",
            {**self.about, "data set fingerprint": self.settings["data set"], **checks},
            {
                "Annotators": markdown("annotator", "edited | skipped | median edit ratio", rows),
                "Agreement": f"Which {agreement.unit} of the original are wrong, with 95 % intervals by row. An "
                "insertion counts as the one right after it; who found nothing wrong has marked none.\n\n"
                f"{agreement.table()}",
                "Criteria": quoted(self.settings["criteria"]),
            },
        )

    def table(self, agreement: AgreementReport | None = None) -> Group:
        """The counts, by reason and by annotator, and the agreement, for a rich console."""
        counts = _table(("decisions", "rows"), [(reason, str(n)) for reason, n in self.counts().items()])
        people = [(name, *map(_cell, figures.values())) for name, figures in self.by_annotator().items()]
        parts: list[Table | str] = [counts, "", _table(("annotator", "edited", "skipped", "median edit ratio"), people)]
        agreement = agreement or self.agreement()
        parts += ["", _table(("agreement", ""), [*agreement.summary().items()])]
        if agreement.pairs:
            head = ("pair", "rows", agreement.unit, "labelled alike", "Cohen's kappa", "F1")
            pairs: list[tuple[str, ...]] = [
                (" and ".join(p.annotators), str(p.rows), str(p.words), f"{p.same:.1%}", str(p.kappa), str(p.f1))
                for p in agreement.pairs
            ]
            parts += ["", _table(head, pairs)]
        return Group(*parts)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def read_annotations(folder: str | Path) -> Annotations:
    """Reads the decisions made on the page of [`annotate_dataset`]. The server may be running.

    Args:
        folder (`str` or `Path`):
            The output folder.

    Raises:
        ValueError: If there are no annotations in it.
    """
    path = Path(folder) / LOG
    lines = read_log(path, LOG_NAMES, repair=False)
    if not lines:
        raise ValueError(f"{folder} has no {LOG}: name the output folder of `trl-tokenreward annotate`.")
    head, *records = lines
    last = {(record["row"], record["annotator"]): record for record in records}
    decisions = [last[key] for key in sorted(last)]
    return Annotations(decisions, head["settings"], head["about"], Features.from_dict(head["features"]))
