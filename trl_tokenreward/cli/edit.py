"""`trl-tokenreward edit`: have a language model minimally edit the rejected answers of a preference data set."""

import argparse
import json
from pathlib import Path
from typing import Any

from .options import (
    about,
    add_checks,
    add_editor,
    add_split,
    check_editor,
    editor_option,
    positive,
    read_checks,
    read_editor,
    read_template,
    say,
)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "edit",
        help="have a language model minimally edit the rejected answers of a preference data set",
        description="Have a language model minimally edit the rejected answer of each row of a preference data set. "
        "Each edit is checked; what fails is tried again, then dropped with its reason. An interrupted run resumes "
        "when it is called again. The result is a data set for TokenRewardTrainer, with a data card.",
    )
    add = parser.add_argument
    add("dataset", help="a JSON, JSON Lines, CSV or Parquet file, a folder, or a name on the Hub")
    add("output", help="folder for the result, or of the run to go on with")
    add_editor(parser)
    add_split(parser)
    add("--limit", type=positive, metavar="N", help="edit the first N rows only")
    add_checks(parser)
    add("--reward-model", metavar="PATH", help="an edit must get a higher score from it than the original")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    check_editor(args)
    from ..editing.edit_dataset import FAILURES, edit_dataset
    from ..utils.loading import load_split

    checks, criteria = read_checks(args)
    dataset = load_split(args.dataset, args.split, args.config)
    editor = read_editor(args)
    if args.reward_model is not None:
        checks.score = _score(args.reward_model)
    result = edit_dataset(
        dataset,
        editor,
        args.output,
        criteria=criteria,
        checks=checks,
        retries=editor_option(args, "retries"),
        **read_template(args),
        limit=args.limit,
        about=about(args, **{"reward model": args.reward_model}),
    )
    say(result.describe())
    if all(reason in FAILURES for reason, number in result.counts.items() if number):
        last = json.loads(Path(args.output, "dropped.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        raise ValueError(f"No request was answered. The last, for row {last['row']}: {last['detail']}")
    say(f"They are in {args.output}; see its README.md.")


def _score(path: str) -> Any:
    import torch

    from ..evaluation.judges import RewardModelJudge
    from ..reward_model.modeling import TokenRewardModel
    from ..utils.loading import load_tokenizer, loading

    with loading(path, "reward model"):
        model = TokenRewardModel.from_pretrained(path).to("cuda" if torch.cuda.is_available() else "cpu")
    return RewardModelJudge(model, load_tokenizer(path)).scores
