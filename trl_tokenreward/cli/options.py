"""Options that several commands share. Heavy imports happen only when the options are read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.text import visible


if TYPE_CHECKING:
    from ..editing.checks import EditChecks


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds `--split` and `--config`, the arguments of [`~utils.loading.load_split`]."""
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--config", help="its configuration, or its folder, such as harmless-base")


def add_checks(parser: argparse.ArgumentParser) -> None:
    """Adds the options of [`EditChecks`] and the criteria, for people and for models."""
    add = parser.add_argument
    add("--criteria", type=Path, metavar="FILE", help="text: what the edited answers must meet")
    add("--max-edit-ratio", type=float, default=0.5, help="largest share of edited words (default: %(default)s)")
    add("--max-hunks", type=int, default=16, help="most places with an edit (default: %(default)s)")
    add("--max-length-change", type=float, default=0.5, help="largest change of the length (default: %(default)s)")


def read_checks(args: argparse.Namespace) -> "tuple[EditChecks, str]":
    """The checks, and the criteria."""
    from ..editing.checks import DEFAULT_CRITERIA, EditChecks

    criteria = read_text(args.criteria) if args.criteria else DEFAULT_CRITERIA
    return EditChecks(args.max_edit_ratio, args.max_hunks, args.max_length_change), criteria


def say(line: str) -> None:
    """Prints a line without what a terminal would obey: names of files may have escape sequences in them."""
    print(visible(line))


def read_text(path: Path) -> str:
    """The text of a file. A `ValueError` names a file that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def about(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """The source of a data set, for the data card."""
    origin = {"dataset": args.dataset, "config": args.config, "split": args.split, **more}
    return {name: value for name, value in origin.items() if value is not None}
