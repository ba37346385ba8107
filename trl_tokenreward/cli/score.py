"""`trl-tokenreward score [MODEL] (--text TEXT ... | --file FILE | --run FOLDER)`"""

import argparse
from typing import Any

from .options import add_split, positive


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "score",
        help="show a reward model's score of each token: of texts, of edits, or of the completions of a training run",
        description="Colours every token of texts by its score, here and on a page. Of preference pairs both sides are "
        "scored and the edits marked. With --run, it shows the completions that a training with log_completions=True "
        "has logged, with their scores, rewards, KL, values and advantages.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="token reward model: a folder, or a name on the Hub")
    add("--other", metavar="MODEL", help="a second model, to see side by side")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="TEXT", nargs="+", help="texts to score; - reads one from standard input")
    source.add_argument(
        "--file",
        metavar="FILE",
        help="a file, a folder, or a name on the Hub, with columns text or completion, or chosen and rejected, and "
        "perhaps prompt",
    )
    source.add_argument("--run", metavar="FOLDER", dest="training_run", help="output_dir of a training run")
    add("--prompt", default="", help="what stands before each --text")
    add("--tokenizer", metavar="NAME_OR_PATH", help="MODEL's tokenizer, if it is not with MODEL")
    add("--other-tokenizer", metavar="NAME_OR_PATH", help="that of --other, if it is not with it")
    add(
        "--signal",
        choices=("token_scores", "sequence_score"),
        help="score of each token (default), or the difference that it makes to the score of the whole",
    )
    add_split(parser)
    add("--limit", type=positive, metavar="N", help="score the first N rows only")
    add("--batch-size", type=positive, default=8, help="texts in one forward pass (default: %(default)s)")
    add("--show", type=positive, default=10, metavar="N", help="most rows to print here (default: %(default)s)")
    add("--output", metavar="PAGE", help="page to write, .html; of more than 1,000 rows it has a sample")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    from rich.console import Console

    from ..ppo.completion_log import read_completions

    rows = _score(arguments) if arguments.training_run is None else read_completions(arguments.training_run)
    if arguments.output is not None:  # first, for `| head` ends what comes after
        rows.write_page(arguments.output)
    # Of a training run, the last completions are those of the policy as it is now.
    shown = rows[: arguments.show] if arguments.training_run is None else rows[-arguments.show :]
    console = Console()
    console.print(shown)
    if len(shown) < len(rows):
        which = "first" if arguments.training_run is None else "last"
        console.print(f"\nThe {which} {len(shown)} of {len(rows)} rows. --show prints more, --output makes a page.")
    if arguments.output is not None:
        console.print(f"\nThe page: {arguments.output}", soft_wrap=True, highlight=False, markup=False)


def _check(arguments: argparse.Namespace) -> None:
    from ..views.html import check_page

    if arguments.output is not None:
        check_page(arguments.output)
    defaults = {"prompt": "", "split": "train", "batch_size": 8}
    of_file, of_run = ("split", "config", "limit"), ("model", "other", "tokenizer", "signal", "batch_size")
    without_effect: tuple[str, ...]
    if arguments.training_run is not None:
        source, without_effect = "--run", (*of_run, "other_tokenizer", "prompt", *of_file)
    else:
        if arguments.model is None:
            raise ValueError("Name the MODEL to score with.")
        source, without_effect = ("--text", of_file) if arguments.text else ("--file", ("prompt",))
        if arguments.other is None and arguments.other_tokenizer is not None:
            raise ValueError("--other-tokenizer has no effect without --other.")
    for name in without_effect:
        if getattr(arguments, name) != defaults.get(name):
            option = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} has no effect with {source}.")


def _score(arguments: argparse.Namespace) -> Any:
    import sys

    import torch

    from ..reward_model.scoring import TokenScorer, score_dataset
    from ..utils.loading import load_split

    # Before the models are loaded, so that errors in the rows are reported at once.
    if arguments.text:
        texts = [sys.stdin.read().removesuffix("\n") if text == "-" else text for text in arguments.text]
        dataset = [{"prompt": arguments.prompt, "text": text} for text in texts]
    else:
        dataset = load_split(arguments.file, arguments.split, arguments.config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [(arguments.model, arguments.tokenizer)]
    if arguments.other is not None:
        models.append((arguments.other, arguments.other_tokenizer))
    scorers = [TokenScorer.from_pretrained(*pair, arguments.signal) for pair in models]
    for scorer in scorers:
        scorer.model.to(device)
    return score_dataset(
        dataset,
        *scorers,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        progress=sys.stderr.isatty() and len(dataset) > arguments.batch_size,
    )
