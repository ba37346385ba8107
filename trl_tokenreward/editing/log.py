"""The append-only log of edits, one line for each row."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.jsonl import read_jsonl


class EditLog:
    """A JSON Lines file that is only appended to. Its first line holds the settings.

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
                    f"{path} was begun with other settings ({', '.join(changed)}). Go on with those, or name another "
                    "output."
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
            except OSError:  # for example a full disk: the next line must not follow half a line
                file.truncate(end)
                raise


def read_log(path: Path, names: Sequence[str], repair: bool = True) -> list[dict[str, Any]]:
    """The lines of an [`EditLog`], the one with the settings first; none if there is no file. `repair` as of
    [`read_jsonl`]."""
    return read_jsonl(
        path, "the log", "row", lambda line: "settings" in line or [line[name] for name in names], repair=repair
    )
