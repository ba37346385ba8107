"""JSON that others wrote, and JSON Lines files that are appended to."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON text, whoever wrote it.

    Raises:
        `ValueError`: if it is no JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_jsonl(path: Path, name: str, content: str, check: Callable[[Any], Any], *, repair: bool = True) -> list[Any]:
    """The lines of a JSON Lines file that is being appended to.

    Args:
        path (`Path`):
            The file; if there is none, there are no lines.
        name, content (`str`):
            What the file and a line of it are, for errors.
        check (`Callable`):
            Called with each line; raises if it is something else.
        repair (`bool`, *optional*, defaults to `True`):
            If `True`, makes a missing folder, and removes an incomplete last line that a killed process left.
            Without it the file is only read, and such a rest is not: it may be a line that is being written.

    Raises:
        `ValueError`: naming the first line that is something else.
    """
    if repair:
        path.parent.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    *lines, rest = data.split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_json(line))
            check(records[-1])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Line {number} of {name} {path} is no {content}: delete it or name another file."
            ) from error
    if rest and repair:
        logger.warning(f"The last line of {name} {path} is incomplete and is cut off.")
        with path.open("r+b") as file:
            file.truncate(len(data) - len(rest))
    return records


def append_jsonl(path: Path, *records: dict[str, Any]) -> None:
    """Appends lines to a JSON Lines file. When this returns, they are on the disk; when it raises, none of them is in
    the file."""
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException as error:  # for example a full disk: the next line must not follow half a line
            file.truncate(end)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = str(path)
            raise
