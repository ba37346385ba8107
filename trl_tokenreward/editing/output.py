"""Writes the data set of edits and its data card."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ..utils.files import write_text
from ..utils.statistics import markdown
from .tasks import Task


def edited_row(task: Task, edited: str, **more: Any) -> dict[str, Any]:
    """A row for [`TokenRewardTrainer`]: `chosen` is the edit, `rejected` the original."""
    sides: dict[str, Any] = {"chosen": edited, "rejected": task.answer}
    if not isinstance(task.prompt, str):
        sides = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": task.prompt, **sides, **task.more, "row": task.row, **more}


def edited_features(features: Features, task: Task) -> Features:
    """The columns of [`edited_row`], given those of the data set."""
    kinds = dict.fromkeys(("prompt", "chosen", "rejected"), features["rejected"])
    given = {column: features[column] for column in ("prompt", *task.more) if column in features}
    kinds |= {column: kind for column, kind in given.items() if kind != Value("null")}  # that no row has
    return Features({**kinds, "row": Value("int64")})


def save_edits(output: Path, rows: list[dict[str, Any]], dropped: list[dict[str, Any]], features: Features) -> Dataset:
    """Writes the edited rows as `save_to_disk` does, and those dropped to `dropped.jsonl`."""
    columns = {column: [row[column] for row in rows] for column in features}  # there may be no rows
    dataset = Dataset.from_dict(columns, features=features)
    new, state = output / ".new", output / "state.json"
    if new.exists():  # of a run that was killed
        shutil.rmtree(new)
    dataset.save_to_disk(str(new), num_shards=None if rows else 1)  # without a shard it could not be loaded
    # `load_from_disk` needs `state.json`, which goes first and comes last: a kill in between leaves no half of a data
    # set that loads as a small one. Until then the earlier result, which may have more shards, is whole.
    state.unlink(missing_ok=True)
    for shard in output.glob("data-*.arrow"):
        shard.unlink()
    for path in sorted(new.iterdir(), key=lambda path: path.name == state.name):
        os.replace(path, output / path.name)
    new.rmdir()
    lines = "".join(json.dumps(row) + "\n" for row in dropped)
    write_text(output / "dropped.jsonl", lines)
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
        f"{introduction} It is made for `TokenRewardTrainer` of trl-tokenreward. `datasets.load_from_disk` reads the "
        "folder; from the Hub, `load_dataset` does.",
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
    """A text as a literal block of markdown."""
    return f"````\n{text}\n````"
