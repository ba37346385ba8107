"""Evaluates a process reward model on held-out solutions: metrics of steps, and of the first wrong one."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.formats import (
    ColumnError,
    check_row,
    check_unicode,
    conversational_texts,
    given_columns,
    plain_rows,
    row_format,
    row_sides,
    standard_texts,
)
from ..data.preprocessing import completion_tokens
from ..data.steps import read_steps
from ..data.tokens import TextTokenizer
from ..nn.modules import max_positions, without_peft
from ..utils.statistics import (
    Estimate,
    auroc_of_ranks,
    best_threshold,
    check_bootstrap,
    estimate,
    markdown,
    ratio,
    resampled,
    write_figures,
)
from ..utils.validation import check_least, check_tokenizer
from .modeling import TokenRewardModel
from .step_metrics import (
    AGGREGATIONS,
    StepAggregation,
    first_wrong_f1,
    harmonic_mean,
    step_f1,
    step_scores,
    threshold_interval,
)
from .text_scores import scores_of_ids


class ScoredSolution(NamedTuple):
    """A solution with the scores of its T tokens.

    Args:
        row (`int`):
            The row that it is from.
        prompt (`str` or `None`):
            The question, as the model reads it; `None` if the row has none.
        places (`range`):
            Where the T tokens of the completion's own text are among all tokens.
        token_scores (`list[float]`), token_spans (`list[tuple[int, int]]`):
            T scores, and the characters `[start, end)` of the completion that the tokens stand for.
        steps (`list[list[int]]`), right (`list[bool]`):
            The characters `[start, end)` of each step, and whether it is right.
    """

    row: int
    prompt: str | None
    places: range
    token_scores: list[float]
    token_spans: list[tuple[int, int]]
    steps: list[list[int]]
    right: list[bool]


class ScoredSteps(NamedTuple):
    """The steps of R solutions, N in all.

    Args:
        solution, score, right (`np.ndarray`):
            Of each step, the index of its solution, its score, and whether it is right. Shape (N,).
        problem (`np.ndarray`):
            Of each solution, the index of its prompt; one without a prompt is a problem of its own. Shape (R,).
        intervals (`np.ndarray`):
            Of each solution, [`~reward_model.step_metrics.threshold_interval`]. Shape (R, 2).
        dropped (`dict[str, int]`):
            `"rows"` read, those `"kept"`, and those that are `"too_long"`.
    """

    solution: np.ndarray
    score: np.ndarray
    right: np.ndarray
    problem: np.ndarray
    intervals: np.ndarray
    dropped: dict[str, int]

    @property
    def wrong_solutions(self) -> np.ndarray:
        """Whether each solution has a wrong step. Shape (R,)."""
        return np.bincount(self.solution[~self.right], minlength=len(self.problem)) > 0


@dataclass(frozen=True)
class StepReport:
    """Metrics of a process reward model, see [`evaluate_steps`].

    Args:
        solutions, wrong_solutions, steps, wrong_steps (`int`):
            How many there are.
        dropped (`dict[str, int]`):
            `"rows"` read, those `"kept"`, and those that are `"too_long"`.
        step_threshold, first_wrong_threshold (`float`):
            A step whose score is below is flagged as wrong, in the metrics of steps and in those of solutions.
        step_auroc ([`~utils.statistics.Estimate`]):
            How well low scores find the wrong steps.
        step_accuracy ([`~utils.statistics.Estimate`]):
            Share of the steps that are flagged if and only if they are wrong.
        step_f1 ([`~utils.statistics.Estimate`]):
            F1 of the flagged steps as wrong ones.
        wrong_accuracy ([`~utils.statistics.Estimate`]):
            Share of the wrong solutions of which the first flagged step is the first wrong one.
        right_accuracy ([`~utils.statistics.Estimate`]):
            Share of the right solutions without a flagged step.
        first_wrong_f1 ([`~utils.statistics.Estimate`]):
            The harmonic mean of these two accuracies, ProcessBench's measure.
    """

    solutions: int
    wrong_solutions: int
    steps: int
    wrong_steps: int
    dropped: dict[str, int]
    step_threshold: float
    first_wrong_threshold: float
    step_auroc: Estimate
    step_accuracy: Estimate
    step_f1: Estimate
    wrong_accuracy: Estimate
    right_accuracy: Estimate
    first_wrong_f1: Estimate

    def table(self) -> str:
        """The figures as a markdown table."""
        rows = {
            "solutions (wrong ones)": f"{self.solutions} ({self.wrong_solutions})",
            "solutions dropped": self.dropped["rows"] - self.dropped["kept"],
            "steps (wrong ones)": f"{self.steps} ({self.wrong_steps})",
            "AUROC of wrong steps": self.step_auroc,
            f"step accuracy at {self.step_threshold:.3f}": self.step_accuracy,
            f"F1 of wrong steps at {self.step_threshold:.3f}": self.step_f1,
            f"wrong solutions, first wrong step found at {self.first_wrong_threshold:.3f}": self.wrong_accuracy,
            f"right solutions, no step flagged at {self.first_wrong_threshold:.3f}": self.right_accuracy,
            "F1 of the first wrong step": self.first_wrong_f1,
        }
        return markdown("", "process reward model", rows)

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Write the figures to a JSON file."""
        write_figures(Path(path), asdict(self))


def evaluate_steps(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    *,
    aggregation: StepAggregation = "mean",
    threshold: float | None = None,
    threshold_dataset: Dataset | IterableDataset | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> StepReport:
    """Measure a process reward model, which is a token reward model, on held-out solutions in steps.

    Args:
        model ([`TokenRewardModel`] or `PeftModel`):
            The model, or an adapter around one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, a fast one.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Rows of `prompt` (optional) and `completion`, texts or messages, `completion_judged` (the steps) and
            `completion_spans` (the wrong ones), as [`~data.importers.import_dataset`] makes them of the formats
            `"stepwise"` and `"prmbench"`.
        aggregation (`str`, *optional*, defaults to `"mean"`):
            How a step's score is made of the scores of its tokens, `"mean"`, `"min"` or `"last"`. Of rows that have
            labels on the last token alone, all are that token's score.
        threshold (`float`, *optional*):
            A step whose score is below is flagged. If neither this nor `threshold_dataset` is given, 0, where a token
            is as likely wrong as right.
        threshold_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Other rows, on which two thresholds are chosen, that of the highest F1 of wrong steps and that of the
            highest F1 of the first wrong step. Rows that the model was trained on are no good: their scores are
            farther apart.
        max_length (`int`, *optional*):
            Longer rows, in tokens, are dropped. If `None`, the backbone's `max_position_embeddings`.
        batch_size (`int`, *optional*, defaults to `8`):
            Solutions in one forward pass.
        seed, level, resamples:
            Of the bootstrap over problems, see [`~utils.statistics.bootstrap_interval`]. Solutions with one prompt are
            drawn together.

    Raises:
        `TypeError`: if the model is no token reward model.
        `ValueError`: for malformed rows (naming row and column), if no rows are left, for bad numbers, and if
            `threshold_dataset` lacks wrong or right solutions.
    """
    if threshold is not None and threshold_dataset is not None:
        raise ValueError("`threshold` has no effect with `threshold_dataset`, on which it is chosen. Give one of them.")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"`threshold` must be a finite number, but is {threshold}.")
    check_bootstrap(level, resamples)
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"`aggregation` must be one of {list(AGGREGATIONS)}, not {aggregation!r}.")
    score = partial(score_solutions, model, tokenizer, max_length=max_length, batch_size=batch_size)
    steps = scored_steps(*score(dataset), aggregation)
    thresholds = (threshold or 0.0,) * 2
    if threshold_dataset is not None:
        thresholds = choose_thresholds(scored_steps(*score(threshold_dataset, name="threshold"), aggregation))
    return step_report(steps, *thresholds, seed=seed, level=level, resamples=resamples)


def score_solutions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
    *,
    max_length: int | None = None,
    batch_size: int = 8,
    name: str = "evaluation",
) -> tuple[list[ScoredSolution], dict[str, int]]:
    """Scores the tokens of solutions.

    The arguments and errors are those of [`evaluate_steps`]; `name` is what errors call the data set.

    Returns:
        `tuple[list[ScoredSolution], dict[str, int]]`: the solutions, and how many `"rows"` were read, `"kept"` and
        `"too_long"`.
    """
    base = without_peft(model)
    if not isinstance(base, TokenRewardModel):
        raise TypeError(f"`model` must be a TokenRewardModel or an adapter around one, got {type(model).__name__}.")
    check_tokenizer(tokenizer, "tokenizer")
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for. Use a fast tokenizer."
        )
    check_least(batch_size=(batch_size, 1))
    limit = max_positions(base) if max_length is None else max_length
    tokenize = TextTokenizer(tokenizer)
    counts, rows, sequences = Counter(rows=0, kept=0, too_long=0), [], []
    for index, row in enumerate(plain_rows(dataset, name)):
        try:
            solution, ids = _read(row, index, tokenizer, tokenize)
        except ValueError as error:
            raise ValueError(f"Row {index} of the {name} data set: {error}") from error
        outcome = "too_long" if limit is not None and len(ids) > limit else "kept"
        counts.update(rows=1, **{outcome: 1})
        if outcome == "kept":
            rows.append(solution)
            sequences.append(ids)
    if not rows:
        dropped = f"{counts['too_long']} are too long, raise `max_length`" if counts["rows"] else "it has no rows"
        raise ValueError(f"Nothing is left of the {name} data set: {dropped}.")
    scores = scores_of_ids(model, sequences, batch_size, numbers=[solution.row for solution in rows])
    solutions = [
        solution._replace(token_scores=[of_ids.token_scores[place] for place in solution.places])
        for solution, of_ids in zip(rows, scores, strict=True)
    ]
    return solutions, dict(counts)


def _read(
    row: Any, index: int, tokenizer: PreTrainedTokenizerBase, tokenize: TextTokenizer
) -> tuple[ScoredSolution, list[int]]:
    """A solution without scores, and its token ids, as training reads them."""
    check_row(row)
    check_unicode(row)
    row = given_columns(row)
    if row_sides(row) != ("completion",):
        raise ColumnError("completion", "is missing: a solution in steps is a row with one side.")
    is_rendered = row_format(row) == "conversational"
    texts = conversational_texts(row, tokenizer) if is_rendered else standard_texts(row, tokenizer.eos_token or "")
    text = texts["completion"]
    words = text.text[text.start : text.end]
    if is_rendered and words != row["completion"][-1].get("content"):
        raise ColumnError("completion", "must be one message that the chat template renders as it is.")
    steps, right = read_steps(row, words)
    tokens = tokenize(text.text, rendered=is_rendered)
    _, places, own = completion_tokens(tokens, text)
    prompt = text.text[: text.prompt_end] if row.get("prompt") else None
    return ScoredSolution(index, prompt, places, [], own.offsets, steps, right), tokens.ids


def scored_steps(
    solutions: Sequence[ScoredSolution], dropped: Mapping[str, int], aggregation: StepAggregation = "mean"
) -> ScoredSteps:
    """The scores of the steps of what [`score_solutions`] returns.

    Raises:
        ValueError: If a step has no token. The error names the row.
    """
    parts, intervals = [], []
    for place, solution in enumerate(solutions):
        try:
            scores = step_scores(solution.token_scores, solution.token_spans, solution.steps, aggregation)
        except ValueError as error:
            raise ValueError(f"Row {solution.row}: {error}") from error
        labels = np.array(solution.right, dtype=bool)
        parts.append((np.full(len(labels), place), scores, labels))
        intervals.append(threshold_interval(scores, labels))
    names = [one.row if one.prompt is None else one.prompt for one in solutions]
    problems = {name: number for number, name in enumerate(dict.fromkeys(names))}
    places, values, right = map(np.concatenate, zip(*parts, strict=True))
    return ScoredSteps(
        solution=places,
        score=values,
        right=right,
        problem=np.array([problems[name] for name in names]),
        intervals=np.array(intervals),
        dropped=dict(dropped),
    )


def choose_thresholds(steps: ScoredSteps) -> tuple[float, float]:
    """The threshold of the highest F1 of wrong steps, and that of the highest F1 of the first wrong step.

    Raises:
        ValueError: If all solutions are right, or none is.
    """
    wrong = steps.wrong_solutions
    if wrong.all() or not wrong.any():
        raise ValueError(
            f"A threshold is chosen on right and wrong solutions, but {int(wrong.sum())} of {len(wrong)} are wrong."
        )
    return (
        best_threshold(lambda c: step_f1(steps.score, steps.right, c), steps.score),
        best_threshold(lambda c: first_wrong_f1(steps.intervals, wrong, c), steps.score),
    )


def step_report(
    steps: ScoredSteps,
    step_threshold: float = 0.0,
    first_wrong_threshold: float = 0.0,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 1000,
) -> StepReport:
    """The metrics of scored steps at two thresholds. The other arguments are those of [`evaluate_steps`]."""
    flagged, wrong = steps.score < step_threshold, ~steps.right
    of_steps = (np.ones_like(wrong), flagged == wrong, flagged & wrong, flagged, wrong)
    wrong_solution = steps.wrong_solutions
    low, high = steps.intervals.T
    exact = (low < first_wrong_threshold) & (first_wrong_threshold <= high)
    of_solutions = (wrong_solution, exact & wrong_solution, ~wrong_solution, exact & ~wrong_solution)
    # Sums over the solutions of a problem, (P, 9): what a bootstrap sample of problems adds up.
    of_step = steps.problem[steps.solution]
    table = np.stack(
        [np.bincount(of_step, values) for values in of_steps]
        + [np.bincount(steps.problem, values) for values in of_solutions],
        axis=1,
    )
    _, rank = np.unique(-steps.score, return_inverse=True)

    def figures(counts: np.ndarray) -> list[float]:
        n, accurate, found, flags, errors, wrongs, wrongs_exact, rights, rights_exact = counts @ table
        accuracies = ratio(wrongs_exact, wrongs), ratio(rights_exact, rights)
        return [
            auroc_of_ranks(rank, wrong, counts[of_step]),
            ratio(accurate, n),
            ratio(2 * found, flags + errors) if errors else math.nan,
            *accuracies,
            harmonic_mean(*accuracies),
        ]

    samples = np.array([figures(counts) for counts in resampled(len(table), seed, resamples)])
    values = figures(np.ones(len(table), dtype=int))
    estimates = [estimate(value, column, level) for value, column in zip(values, samples.T, strict=True)]
    return StepReport(
        len(steps.problem),
        int(wrong_solution.sum()),
        len(steps.score),
        int(wrong.sum()),
        steps.dropped,
        step_threshold,
        first_wrong_threshold,
        *estimates,
    )
