"""`trl-tokenreward round PROMPTS OUTPUT`: rounds of sampling, editing, reward training and PPO."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import (
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


if TYPE_CHECKING:
    from ..rounds.settings import RoundConfig


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "round",
        help="rounds in which the policy's own answers are edited, and the reward model and the policy train on",
        description="Runs rounds of editing. In each, the policy answers prompts, an editor minimally edits its "
        "answers, the reward model trains on with the edits, and PPO goes on with that reward model. Each round has a "
        "folder in OUTPUT with its models, edits and figures. The same command resumes, and with more --rounds goes "
        "on.",
        epilog="With --people, each round stops after sampling and says which commands have people edit the answers "
        "and save the edits. The same command then goes on.",
    )
    add = parser.add_argument
    add("prompts", metavar="PROMPTS", help="data set of prompts, or of preference pairs for their prompts")
    add("output", metavar="OUTPUT", help="folder for the rounds, or that of the rounds to go on with")
    add("--policy", metavar="MODEL", required=True, help="the first policy: a folder or a name on the Hub")
    add("--reward-model", metavar="MODEL", required=True, help="the first reward model: a folder or a name on the Hub")
    add(
        "--rounds", type=positive, default=1, metavar="N", help="how many rounds, with those that are done (default: 1)"
    )
    add("--pairs", metavar="DATASET", help="pairs to train the reward model on again along with the edits")
    add("--eval-pairs", metavar="DATASET", help="held-out pairs, to measure both models on before and after")
    add(
        "--num-prompts",
        type=positive,
        metavar="N",
        help="answers to sample for editing in a round (default: all prompts)",
    )
    add("--replay", type=float, default=1.0, metavar="SHARE", help="share of earlier pairs to train on (default: 1)")
    add(
        "--reference",
        choices=("first", "current"),
        default="first",
        help="policy from which PPO's KL penalty counts: the first one, or that of the round (default: first)",
    )
    add("--reward-config", type=Path, metavar="FILE", help="YAML file with the fields of a TokenRewardConfig")
    add("--ppo-config", type=Path, metavar="FILE", help="YAML file with the fields of a FineGrainedPPOConfig")
    add_editor(parser).add_argument("--people", action="store_true", help="people edit, with `annotate`")
    add_split(parser)
    add_checks(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    check_editor(args)
    from ..rounds.run import PEOPLE, EditsPending, RoundEditor, run_rounds
    from ..utils.loading import load_split

    config = _config(args)
    prompts = load_split(args.prompts, args.split, args.config)
    names = args.pairs, args.eval_pairs
    pairs, eval_pairs = (None if name is None else load_split(name, "train") for name in names)
    editor: RoundEditor = PEOPLE if args.people else read_editor(args)
    try:
        rounds = run_rounds(
            args.policy,
            args.reward_model,
            prompts,
            editor,
            args.output,
            config=config,
            rounds=args.rounds,
            pairs=pairs,
            eval_pairs=eval_pairs,
        )
    except EditsPending as pending:
        for line in str(pending).splitlines():
            say(line)
        return
    for each in rounds:
        say(each.describe())
    say(f"The policy is in {rounds[-1].policy}, the reward model in {rounds[-1].reward_model}.")


def _config(args: argparse.Namespace) -> "RoundConfig":
    from ..editing.checks import DEFAULT_CRITERIA, EditChecks
    from ..ppo.config import FineGrainedPPOConfig
    from ..reward_model.config import TokenRewardConfig
    from ..rounds.settings import RoundConfig
    from ..utils.config_file import read_config

    checks, criteria = read_checks(args)
    options = {"criteria": criteria, "checks": checks, **read_template(args)}
    if args.people:
        if args.model is not None or options != {"criteria": DEFAULT_CRITERIA, "checks": EditChecks()}:
            raise ValueError("--people: --model and the options of edits have no effect; give those to `annotate`.")
        options = {}
    else:
        options["retries"] = editor_option(args, "retries")
    return RoundConfig(
        TokenRewardConfig() if args.reward_config is None else read_config(args.reward_config, TokenRewardConfig),
        FineGrainedPPOConfig() if args.ppo_config is None else read_config(args.ppo_config, FineGrainedPPOConfig),
        num_prompts=args.num_prompts,
        replay=args.replay,
        reference=args.reference,
        edit_options=options,
    )
