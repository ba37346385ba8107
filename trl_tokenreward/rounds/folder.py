"""The folder of a round, and the record of the stages that are done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.files import check_own_folder, check_same_settings, write_text
from ..utils.jsonl import parse_json


RECORD = "round.json"


class RoundFolder:
    """A folder with what a round makes, and `round.json`: the round's settings, and the figures of each stage that is
    done. A stage counts as done once its figures are there, and is not repeated then.

    Args:
        path (`Path`):
            The folder. If there is none, it is made.
        settings (`dict`):
            What must stay the same from run to run, as JSON-compatible values.

    Attributes:
        samples, edits, reward_model, policy (`Path`):
            What the stages make: a file, a data set, and two models.

    Raises:
        ValueError: If the folder is something else, or was begun with other settings; it names them.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        check_own_folder(path, RECORD)
        path.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, path / RECORD
        self.samples, self.edits = path / "samples.jsonl", path / "edits"
        self.reward_model, self.policy = path / "reward_model", path / "policy"
        settings = json.loads(json.dumps(settings, default=str))
        if not self._file.exists():
            # It is written with the first stage: settings that something is wrong with may be put right.
            self._record = {"settings": settings}
            return
        self._record = _read(self._file)
        check_same_settings(path, self._record["settings"], settings)

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of each stage that is done."""
        return {name: figures for name, figures in self._record.items() if name != "settings"}

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a stage, which `work` does and returns unless it is done."""
        if name not in self._record:
            self._record[name] = work()
            self._write()
        return self._record[name]

    def _write(self) -> None:
        write_text(self._file, json.dumps(self._record, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = parse_json(path.read_bytes())
        if not isinstance(record["settings"], dict):
            raise TypeError("its settings are no dictionary")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no record of a round ({error}): name another output.") from error
    return record
