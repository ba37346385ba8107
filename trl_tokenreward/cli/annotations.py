"""`trl-tokenreward annotations FOLDER`: what people decided, how far they agree, and the data set of their edits."""

import argparse

from .options import say


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "annotations",
        help="count what people decided, measure how far they agree, and save their edits as a data set",
        description="Prints what `trl-tokenreward annotate` has written to a folder: decisions by reason and "
        "annotator, and how far annotators agree on which words are wrong. May be called while the page is open.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the output folder of `trl-tokenreward annotate`")
    parser.add_argument(
        "--save", metavar="OUTPUT", help="new folder for the data set for TokenRewardTrainer, with a card"
    )
    parser.add_argument("--tokenizer", metavar="NAME_OR_PATH", help="measure the agreement by its tokens, not by words")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..annotation.results import read_annotations

    annotations = read_annotations(args.folder)
    tokenizer = None
    if args.tokenizer is not None:
        from ..utils.loading import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer)
    agreement = annotations.agreement(tokenizer)
    if args.save is not None:
        dataset = annotations.save(args.save, agreement)
    Console().print(annotations.table(agreement))
    if args.save is not None:
        say(f"{len(dataset)} edits are in {args.save}; see its README.md.")
