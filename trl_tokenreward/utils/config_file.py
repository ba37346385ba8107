"""Settings of trainers in YAML files."""

import re
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import yaml

from .text import shorten


Config = TypeVar("Config")


class _Loader(yaml.SafeLoader):
    """Reads `1e-5` as a number and `no` as a text, as YAML 1.2 does. PyYAML reads YAML 1.1."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), [*"-+.0123456789"]
)


def read_config(path: Path, config: type[Config]) -> Config:
    """A dataclass of settings from a YAML file of its fields, whose types it checks itself.

    Raises:
        ValueError: If the file is no YAML, has another field, or the settings are refused. The error names the file.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(values, dict):
            raise ValueError(f"it must have fields and values, but is {shorten(values)}.")
        known = {field.name for field in fields(config) if field.init}  # type: ignore[arg-type]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"it has no field {', '.join(map(repr, unknown))}.")
        return config(**values)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no {config.__name__}: {error}") from error
