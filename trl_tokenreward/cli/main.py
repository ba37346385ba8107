"""The command line, `trl-tokenreward` or `python -m trl_tokenreward`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..utils.text import unicode_problem, visible


# Modules of `trl_tokenreward.cli`, in the order in which the help lists them. Each has `add_parser(subparsers)`, which
# adds a parser with `run` among its defaults: a function of the parsed arguments. Heavy imports happen
# in `run`, so that `--help` is fast.
COMMANDS = ("import_", "inspect", "edit", "annotate", "annotations", "round", "score", "export")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="trl-tokenreward",
        description="Minimal edits for token rewards: bring them in, have them made, and look at them and at the "
        "scores that they teach.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f".{name}", __package__).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments (`Sequence[str]`, *optional*):
            What follows the program's name; `sys.argv[1:]` by default.

    Returns:
        `int`: the exit status: 0, 2 after one line on stderr if the input is wrong, or 130 after Ctrl+C. Any other
        error is a bug and keeps its traceback.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        for name, value in vars(parsed).items():
            if problem := unicode_problem(value):
                raise ValueError(f"{name.upper()} {problem}")
        parsed.run(parsed)
    except (ValueError, OSError) as error:  # what is wrong with a row or an option; files and the network
        # What a data set or an endpoint says may be in it, and a terminal would obey an escape sequence.
        line = visible(" ".join(str(error).split()))
        print(f"{parser.prog} {parsed.command}: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {parsed.command}: interrupted", file=sys.stderr)
        return 130
    return 0
