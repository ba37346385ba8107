"""Rows that others wrote: their fields, and errors that name them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..utils.text import shorten


_NAMES: dict[type, str] = {str: "a text", list: "a list", dict: "a dictionary", int: "a whole number"}


def get_field(row: Mapping[str, Any], name: str, kind: type = str) -> Any:
    """The value of a field.

    Raises:
        ValueError: If the field is missing, or is not of the type `kind`.
    """
    if name not in row:
        raise ValueError(f"has no `{name}`, only {sorted(map(str, row))}.")
    return check_field(row[name], name, kind)


def check_field(value: Any, name: str, kind: type) -> Any:
    """The value, if it is of the type `kind`.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"`{name}` must be {_NAMES[kind]}, but is {shorten(value)}.")
    return value


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
