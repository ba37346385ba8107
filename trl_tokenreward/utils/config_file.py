"""Settings of trainers in YAML files."""

import re
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .text import shorten


Config = TypeVar("Config")


class _Loader(yaml.SafeLoader):
    """Reads `1e-5` as a number, as YAML 1.2 does. PyYAML reads YAML 1.1, in which it is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    [*"-+.0123456789"],
)


def read_config(path: Path, config: type[Config]) -> Config:
    """A dataclass of settings from a YAML file of its fields. Every value must be of its field's type: a text would
    pass for a flag that is set, and for a number until it is used.

    Raises:
        ValueError: If the file is no YAML, has another field or another type of value. The error names file and field.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(values, dict):
            raise ValueError(f"it must have fields and values, but is {shorten(values)}.")
        hints = get_type_hints(config)
        known = {field.name for field in fields(config) if field.init}  # type: ignore[arg-type]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"it has no field {', '.join(map(repr, unknown))}.")
        return config(**{name: _of_type(name, value, hints[name]) for name, value in values.items()})
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {config.__name__}: {error}") from error


def _of_type(name: str, value: Any, kind: Any) -> Any:
    try:
        return _converted(value, kind)
    except TypeError as error:
        wanted = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        hint = " Write a word such as no, off or yes in quotes if it is a text." if isinstance(value, bool) else ""
        raise ValueError(f"`{name}` must be of the type {wanted}, but is {shorten(value)}.{hint}") from error


def _converted(value: Any, kind: Any) -> Any:
    """The value as `kind` has it: a number without a fraction, such as 1e4, may be a whole one.

    Raises:
        TypeError: If it is of another type.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return _converted(value, part)
            except TypeError:
                continue
    elif kind is Any or (kind is NoneType and value is None):
        return value
    elif origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in parts):
            return value
    elif origin is list and isinstance(value, list):
        return [_converted(item, parts[0]) for item in value]
    elif origin is dict and isinstance(value, dict):
        return {_converted(key, parts[0]): _converted(item, parts[1]) for key, item in value.items()}
    elif kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif isinstance(kind, type) and issubclass(kind, Enum):
        if value in [choice.value for choice in kind]:
            return value
    elif origin is None and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError
