"""`trl-tokenreward inspect DATASET`"""

import argparse

from .options import add_split, positive, say


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="show how many, how large and of which kinds the edits of a data set are",
        description="Prints counts, edit ratios, kinds of edits and the least minimal rows, and writes a page to look "
        "through the rows. Edit ratios count words.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a file, a folder, or a name on the Hub: preference pairs")
    add_split(parser)
    parser.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="count its tokens, as TokenRewardTrainer does")
    parser.add_argument("--max-length", type=positive, help="count the rows that this drops; needs a tokenizer")
    parser.add_argument("--max-edit-ratio", type=float, help="count the rows that this drops")
    parser.add_argument("--output", metavar="PAGE", help="page to write, .html")
    parser.add_argument("--limit", type=positive, help="most rows on the page, else a sample (default: 1000)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..inspection.page import write_page
    from ..inspection.report import inspect_dataset, print_inspection
    from ..utils.loading import load_split, load_tokenizer
    from ..views.html import check_page

    limit = 1000 if arguments.limit is None else arguments.limit
    if arguments.output is not None:
        check_page(arguments.output)
    elif arguments.limit is not None:
        raise ValueError("--limit has no effect without --output: all rows are counted.")
    tokenizer = None
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer)
    inspection = inspect_dataset(
        load_split(arguments.dataset, arguments.split, arguments.config),
        tokenizer,
        max_length=arguments.max_length,
        max_edit_ratio=arguments.max_edit_ratio,
    )
    if arguments.output is not None:  # first, because `| head` ends the process early
        write_page(inspection, arguments.output, title=arguments.dataset, limit=limit)
    print_inspection(inspection, title=arguments.dataset)
    if arguments.output is not None:
        say(f"The rows to look through: {arguments.output}")
