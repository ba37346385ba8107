"""Rows that others wrote."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def convert_rows(
    rows: Iterable[Any], convert: Callable[[Any], Iterator[Any]], source: str, counts: Counter[str]
) -> Iterator[Any]:
    """What `convert` makes of each row; `counts["rows"]` counts them.

    Raises:
        ValueError: If `convert` raises one. The error names the row, counted from 0.
    """
    for index, row in enumerate(rows):
        counts["rows"] += 1
        try:
            yield from convert(row)
        except ValueError as error:
            raise ValueError(f"Row {index} of {source}: {error}") from error
