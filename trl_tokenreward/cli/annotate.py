"""`trl-tokenreward annotate DATASET OUTPUT`: a local web page on which people minimally edit answers."""

import argparse
import getpass
import os
import sys

from .options import about, add_checks, add_split, positive, read_checks


PASSWORD = "TRL_TOKENREWARD_PASSWORD"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "annotate",
        help="a local web page on which people minimally edit the rejected answers",
        description="Serves a web page on which people minimally edit the rejected answer of each row of a preference "
        "data set. While they type, it shows the edit by word and the result of the checks. Several people may work at "
        "once. Everything is stored immediately; the same command resumes. `trl-tokenreward annotations` makes a data "
        "set of it.",
        epilog=f"With {PASSWORD} in the environment the page asks for that password. On another --host than this "
        "machine's own it must be there; at a terminal it is asked for.",
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a JSON, JSON Lines, CSV or Parquet file, a folder, or a name on the Hub")
    add("output", metavar="OUTPUT", help="folder for what is decided, or of the work to go on with")
    add_split(parser)
    add("--limit", type=positive, metavar="N", help="have the first N rows edited only")
    add_checks(parser)
    add("--per-row", type=positive, default=1, metavar="N", help="how many annotators a row is given to (default: 1)")
    add("--overlap", type=float, metavar="SHARE", help="give only this share of the rows to that many, others to one")
    add("--free-after", type=float, default=30, metavar="MINUTES", help="until an idle row is free again (default: 30)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8765, help="port to listen on, 0 for any that is free (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from ..annotation.access import is_loopback
    from ..annotation.annotate import annotate_dataset
    from ..utils.loading import load_split

    password = os.environ.get(PASSWORD)
    if password is None and not is_loopback(args.host) and sys.stdin.isatty():
        password = getpass.getpass("Password that the page asks for: ")
    checks, criteria = read_checks(args)
    options = {
        "host": args.host,
        "port": args.port,
        "password": password,
        "checks": checks,
        "criteria": criteria,
        "limit": args.limit,
        "per_row": args.per_row,
        "overlap": args.overlap,
        "free_after": 60 * args.free_after,
        "about": about(args),
    }
    try:
        annotate_dataset(load_split(args.dataset, args.split, args.config), args.output, **options)
    except ImportError as error:  # says what to install
        raise ValueError(str(error)) from error
