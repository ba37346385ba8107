"""`trl-tokenreward export TOOL MODEL DATASET OUTPUT`"""

import argparse

from .options import add_split, positive, say


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write what a reward model finds wrong as pre-annotations, for Label Studio or Argilla",
        description="Writes texts with spans of low token scores, which people accept or correct in an annotation "
        "tool. `trl-tokenreward import` reads what they made of them.",
    )
    add = parser.add_argument
    add("tool", metavar="TOOL", choices=("label-studio", "argilla"), help="label-studio or argilla")
    add("model", metavar="MODEL", help="token reward model: a folder, or a name on the Hub")
    add(
        "dataset",
        metavar="DATASET",
        help="a file, a folder, or a name on the Hub, with columns text or completion, and perhaps prompt",
    )
    add("output", metavar="OUTPUT", help="a new folder: tasks and labeling interface, or records and settings")
    add_split(parser)
    add("--tokenizer", metavar="NAME_OR_PATH", help="MODEL's tokenizer, if it is not with MODEL")
    add("--threshold", type=float, default=0.0, help="mark tokens with a lower score (default: %(default)s)")
    add("--label", default="wrong", help="label of the spans (default: %(default)s)")
    add("--limit", type=positive, metavar="N", help="export the first N rows only")
    add("--batch-size", type=positive, default=8, help="texts in one forward pass (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from ..reward_model.export import export_scores
    from ..reward_model.scoring import TokenScorer
    from ..utils.loading import load_split

    dataset = load_split(arguments.dataset, arguments.split, arguments.config)
    scorer = TokenScorer.from_pretrained(arguments.model, arguments.tokenizer)
    scorer.model.to("cuda" if torch.cuda.is_available() else "cpu")
    exported = export_scores(
        arguments.tool,
        dataset,
        scorer,
        arguments.output,
        threshold=arguments.threshold,
        label=arguments.label,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
    )
    counts = dict(exported.counts)
    say(f"{counts.pop('kept')} of {counts.pop('rows')} texts with {sum(len(t.spans) for t in exported.texts)} spans.")
    for reason, count in counts.items():
        say(f"dropped: {reason}: {count}")
    say(f"Saved to {arguments.output}.")
