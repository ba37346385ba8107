"""`trl-tokenreward import FORMAT SOURCE OUTPUT`"""

import argparse

from ..data.annotation_tools.offsets import OFFSETS
from ..data.importers import FORMATS, NAMES, STEP_FORMATS
from ..data.steps import STEP_LABELS
from .options import add_split, say


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "import",
        help="bring a data set into the columns of TokenRewardTrainer",
        description="Writes `prompt`, `chosen` (the edit), `rejected` (the original) and, where they are known, "
        "`rejected_spans`; or, of what was marked and not edited, `completion` and `completion_spans`, of solutions in "
        "steps with `completion_judged`. Says what was dropped and why.",
        epilog="formats: " + "; ".join(f"{name}: {text}" for name, text in FORMATS.items()),
    )
    parser.add_argument("format", metavar="FORMAT", choices=FORMATS, help=", ".join(FORMATS))
    parser.add_argument("source", metavar="SOURCE", help="a file, a folder, or a name on the Hub")
    parser.add_argument("output", metavar="OUTPUT", help="a .jsonl or .parquet file, or a folder for save_to_disk")
    add_split(parser)
    columns = parser.add_argument_group("names, for the format `columns` and for annotations")
    for name in NAMES:
        columns.add_argument(f"--{name}", metavar="COLUMN", help=f"column with the {NAMES[name]}")
    add = parser.add_argument_group("annotations of label-studio, argilla and doccano").add_argument
    add(
        "--label",
        metavar="LABEL[=SEVERITY]",
        action="append",
        dest="labels",
        help="a label that marks what is wrong, and perhaps how bad that is; may be repeated (default: all labels do)",
    )
    add(
        "--annotators",
        choices=("each", "majority"),
        default="each",
        help="of several people who annotated one text, keep each, or the characters that most marked (default: each)",
    )
    add("--offsets", choices=OFFSETS, help="what offsets count (default: the spans must tell)")
    steps = parser.add_argument_group(f"steps of the formats {' and '.join(f'`{name}`' for name in STEP_FORMATS)}")
    steps.add_argument("--step-separator", metavar="TEXT", help="what stands between two steps (default: a new line)")
    steps.add_argument(
        "--step-labels",
        choices=STEP_LABELS,
        help="; ".join(f"{name}: {text}" for name, text in STEP_LABELS.items()) + " (default: every_token)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from ..data.importers import import_dataset
    from ..utils.loading import check_output, save_dataset

    check_output(arguments.output)
    columns = {name: getattr(arguments, name) for name in NAMES if getattr(arguments, name) is not None}
    imported = import_dataset(
        arguments.format,
        arguments.source,
        split=arguments.split,
        config=arguments.config,
        columns=columns,
        labels=_labels(arguments.labels),
        annotators=arguments.annotators,
        offsets=arguments.offsets,
        step_separator=arguments.step_separator,
        step_labels=arguments.step_labels,
    )
    save_dataset(imported.dataset, arguments.output)
    say(f"{arguments.source} as {arguments.format}:")
    Console().print(imported.table())
    say(f"Saved to {arguments.output}.")


def _labels(given: list[str] | None) -> list[str] | dict[str, float] | None:
    """The labels, or their severities: what follows the last `=`."""
    if given is None:
        return None
    if not any("=" in label for label in given):
        return given
    severities = {}
    for label in given:
        name, _, severity = label.rpartition("=")
        try:
            severities[name] = float(severity)
        except ValueError as error:
            raise ValueError(f"--label {label}: give each label a severity, a number, or none.") from error
    return severities
