"""Options that several commands share. Heavy imports happen only when the options are read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.text import visible


if TYPE_CHECKING:
    from ..editing.checks import EditChecks
    from ..editing.editors import Editor


# Not argparse's own, so that an option that was given can be told from one that was not.
EDITOR_DEFAULTS = {"retries": 2, "concurrency": 8, "batch_size": 8}
EDITOR_OPTIONS = (*EDITOR_DEFAULTS, "max_new_tokens", "prices")


def positive(text: str) -> int:
    """The type of an option that counts something: argparse names the option, before anything is loaded."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but is {text}")
    return int(text)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds `--split` and `--config`, the arguments of [`~utils.loading.load_split`]."""
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--config", help="its configuration, or its folder, such as harmless-base")


def add_checks(parser: argparse.ArgumentParser) -> None:
    """Adds the options of [`EditChecks`] and the criteria, for people and for models."""
    add = parser.add_argument
    add("--criteria", type=Path, metavar="FILE", help="text: what the edited answers must meet")
    add("--max-edit-ratio", type=float, default=0.5, help="largest share of edited words (default: %(default)s)")
    add("--max-hunks", type=positive, default=16, help="most places with an edit (default: %(default)s)")
    add("--max-length-change", type=float, default=0.5, help="largest change of the length (default: %(default)s)")


def read_checks(args: argparse.Namespace) -> "tuple[EditChecks, str]":
    """The checks, and the criteria."""
    from ..editing.checks import DEFAULT_CRITERIA, EditChecks

    criteria = DEFAULT_CRITERIA if args.criteria is None else read_text(args.criteria)
    return EditChecks(args.max_edit_ratio, args.max_hunks, args.max_length_change), criteria


def add_editor(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds the options of a language model as editor. Returns the group of those of which one is needed."""
    add, editor = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    editor.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    editor.add_argument(
        "--local", metavar="MODEL", help="causal language model to run here: a folder or a name on the Hub"
    )
    add("--model", metavar="NAME", help="the endpoint's name of the model; its key is taken from OPENAI_API_KEY")
    add(
        "--prompt-template",
        type=Path,
        metavar="FILE",
        help="text with {prompt}, {answer}, {criteria}, <edited>, </edited>",
    )
    default = {name: f"(default: {value})" for name, value in EDITOR_DEFAULTS.items()}
    add("--retries", type=int, help=f"how often a refused edit is tried again {default['retries']}")
    add("--concurrency", type=positive, help=f"most requests to the endpoint at a time {default['concurrency']}")
    add("--batch-size", type=positive, help=f"answers that the local model edits at a time {default['batch_size']}")
    add("--max-new-tokens", type=positive, help="most tokens in an edited answer (default: 1024, or the endpoint's)")
    add("--prices", type=float, nargs=2, metavar=("IN", "OUT"), help="of a million tokens, to know the cost")
    return editor


def check_editor(args: argparse.Namespace) -> None:
    """Raises a `ValueError` for options of [`add_editor`] that do not go together."""
    if args.endpoint is not None and not args.model:
        raise ValueError("--endpoint needs --model, the endpoint's name of the model.")
    if args.local is not None and args.model is not None:
        raise ValueError("--model goes with --endpoint; --local names its model itself.")
    without_effect = {
        "--endpoint": ("batch_size",) if args.endpoint is not None else (),
        "--local": ("concurrency", "prices") if args.local is not None else (),
        "--people": EDITOR_OPTIONS if getattr(args, "people", False) else (),
    }
    for editor, names in without_effect.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
        if given:
            raise ValueError(f"{editor}: {', '.join(given)} has no effect.")


def read_editor(args: argparse.Namespace) -> "Editor":
    """The editor of the options of [`add_editor`]."""
    from ..editing.editors import EndpointEditor, LocalEditor

    if args.endpoint is not None:
        settings = None if args.max_new_tokens is None else {"max_tokens": args.max_new_tokens}
        prices = None if args.prices is None else tuple(args.prices)
        concurrency = editor_option(args, "concurrency")
        return EndpointEditor(args.endpoint, args.model, settings=settings, concurrency=concurrency, prices=prices)
    from transformers import AutoModelForCausalLM

    from ..utils.loading import load_tokenizer, loading

    with loading(args.local, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            args.local, dtype="auto", device_map="auto", use_safetensors=True, trust_remote_code=False
        )
    batch_size = editor_option(args, "batch_size")
    most = 1024 if args.max_new_tokens is None else args.max_new_tokens
    return LocalEditor(model, load_tokenizer(args.local), batch_size=batch_size, max_new_tokens=most)


def editor_option(args: argparse.Namespace, name: str) -> int:
    """An option of [`add_editor`] that has a default, or that default."""
    given = getattr(args, name)
    return EDITOR_DEFAULTS[name] if given is None else given


def read_template(args: argparse.Namespace) -> dict[str, Any]:
    """The argument `template` of [`~editing.edit_dataset.edit_dataset`], if it is given."""
    return {} if args.prompt_template is None else {"template": read_text(args.prompt_template)}


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
