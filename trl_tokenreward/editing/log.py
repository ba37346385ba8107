"""The append-only log of edits, one line for each row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import check_same_settings
from ..utils.jsonl import append_jsonl, read_jsonl


class EditLog:
    """A JSON Lines file that is only appended to. Its first line holds the settings. Who opens one has locked its
    folder (see [`~utils.files.lock_folder`]), for two writers would each begin it.

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
        head (`dict`):
            The first line.
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
            lines = [{"settings": settings, **more}]
            self.append(*lines)
        else:
            check_same_settings(path, lines[0]["settings"], settings)
        self.head, self.lines = lines[0], lines[1:]

    def append(self, *lines: dict[str, Any]) -> None:
        """Writes lines. When this returns, they are on the disk; when it raises, none of them is in the file."""
        append_jsonl(self.path, *lines)


def read_log(path: Path, names: Sequence[str], repair: bool = True) -> list[dict[str, Any]]:
    """The lines of an [`EditLog`], the one with the settings first; none if there is no file. `repair` as of
    [`read_jsonl`]."""
    head = iter([("settings",)])
    return read_jsonl(path, "the log", "row", lambda line: [line[name] for name in next(head, names)], repair=repair)
