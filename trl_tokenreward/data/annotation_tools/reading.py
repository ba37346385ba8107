"""Reads the files of annotation tools."""

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...utils.jsonl import parse_json
from ...utils.text import unicode_problem
from ...utils.validation import check_value
from ..foreign_rows import convert_rows
from .annotations import Annotation, Choices, Numbered, Row, Tool, make_rows
from .argilla import ARGILLA, read_argilla
from .doccano import DOCCANO, read_doccano
from .label_studio import LABEL_STUDIO, read_label_studio


_TOOLS: dict[str, tuple[Tool, Callable[..., Iterator[Annotation | str]]]] = {
    "label-studio": (LABEL_STUDIO, read_label_studio),
    "argilla": (ARGILLA, read_argilla),
    "doccano": (DOCCANO, read_doccano),
}


def annotated_rows(
    format: str, rows: Iterable[Any], choices: Choices, source: str, counts: Counter[str], notes: Counter[str]
) -> Iterator[Row | str]:
    """What becomes of the rows of an annotation tool, see [`~data.annotation_tools.annotations.make_rows`]. All are
    read first, since names are chosen from what there is."""
    tool, read = _TOOLS[format]
    annotations: list[Numbered] = []

    def convert(row: Any) -> Iterator[str]:
        check_value(row, "row", dict)
        if problem := unicode_problem(row):
            raise ValueError(problem)
        for made in read(row, choices.names, notes):
            if isinstance(made, str):
                yield made
            else:
                annotations.append(Numbered(counts["rows"] - 1, made))

    yield from convert_rows(rows, convert, source, counts)
    yield from make_rows(annotations, choices, tool, source, notes)


def check_file(source: Any, format: str, split: str, config: str | None) -> Path:
    """The path, if it is a file.

    Raises:
        ValueError: If it is none, or is asked for a split or a configuration.
    """
    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        raise ValueError(f"{source} is no file: the format {format!r} reads a file of JSON or JSON Lines.")
    if split != "train" or config is not None:
        raise ValueError(f"{source} is a file, so `split` and `config` have no effect.")
    return Path(source)


def read_json(path: Path) -> list[Any]:
    """The rows of a list in JSON, or of JSON Lines, compressed with gzip or not.

    Not by Arrow, which has one type for each field: in Label Studio a `text` is a text or a list of texts, and a span
    of doccano is a list of numbers and a text.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return check_value(parse_json(text), "the file", list)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    rows: list[Any] = []
    for line in filter(str.strip, text.split("\n")):
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"Row {len(rows)} of {path}: {error}") from error
    return rows
