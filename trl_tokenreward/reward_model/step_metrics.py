"""Scores of steps, and metrics of a process reward model: pure functions of arrays.

A step is flagged as wrong at a threshold c if its score is below c.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np


StepAggregation = Literal["mean", "min", "last"]

AGGREGATIONS: dict[StepAggregation, Callable[[np.ndarray], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "min": lambda scores: float(scores.min()),
    "last": lambda scores: float(scores[-1]),
}


def step_scores(
    token_scores: Sequence[float],
    token_spans: Sequence[tuple[int, int]],
    steps: Sequence[Sequence[int]],
    aggregation: StepAggregation = "mean",
) -> np.ndarray:
    """The score of each step, from the scores of the tokens that overlap it.

    Args:
        token_scores (`Sequence[float]`):
            Scores of T tokens.
        token_spans (`Sequence[tuple[int, int]]`):
            The characters `[start, end)` of each token, as in [`TextScores`].
        steps (`Sequence[Sequence[int]]`):
            The characters `[start, end)` of each of S steps.
        aggregation (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"min"` of the tokens' scores, or that of the `"last"` token.

    Returns:
        `np.ndarray`: shape (S,).

    Raises:
        ValueError: If the aggregation is unknown, if there are not as many spans as scores, or if a step has no token.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"`aggregation` must be one of {list(AGGREGATIONS)}, not {aggregation!r}.")
    scores, spans = np.asarray(token_scores, dtype=float), np.asarray(token_spans).reshape(-1, 2)
    if len(scores) != len(spans):
        raise ValueError(f"there are {len(scores)} token scores, but {len(spans)} token spans.")
    values = []
    for number, (start, end) in enumerate(steps):
        inside = (spans[:, 0] < end) & (spans[:, 1] > start)
        if not inside.any():
            raise ValueError(f"step {number}, the characters [{start}, {end}), has no token.")
        values.append(AGGREGATIONS[aggregation](scores[inside]))
    return np.array(values)


def threshold_interval(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """The thresholds c at which a solution is judged exactly, low < c ≤ high: a right solution has no flagged step, and
    of a wrong one the first flagged step is the first wrong one. None if low ≥ high.

    Args:
        scores (`np.ndarray`):
            Scores of the steps. Shape (S,).
        right (`np.ndarray`):
            Whether each step is right. Shape (S,).
    """
    scores, wrong = np.asarray(scores, dtype=float), np.flatnonzero(~np.asarray(right, dtype=bool))
    if not len(wrong):
        return -np.inf, float(scores.min(initial=np.inf))
    return float(scores[wrong[0]]), float(scores[: wrong[0]].min(initial=np.inf))


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def first_wrong_f1(intervals: np.ndarray, wrong: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """ProcessBench's measure (Zheng et al., 2025, https://huggingface.co/papers/2412.06559): the harmonic mean of the
    accuracy on wrong solutions, whose first wrong step must be found, and on right ones, where none must be flagged.

    Args:
        intervals (`np.ndarray`):
            [`threshold_interval`] of each of N solutions. Shape (N, 2).
        wrong (`np.ndarray`):
            Whether each has a wrong step. Shape (N,).
        thresholds (`np.ndarray`):
            Shape (C,).

    Returns:
        `np.ndarray`: shape (C,). NaN if there are no wrong solutions or no right ones.
    """
    accuracies = []
    for part in (wrong, ~wrong):
        low, high = intervals[part].T
        possible = low < high
        # Thresholds above `low` less those above `high` too: sorting keeps many thresholds cheap.
        hits = _below(low[possible], thresholds) - _below(high[possible], thresholds)
        accuracies.append(hits / part.sum() if part.any() else np.full(len(thresholds), np.nan))
    return np.array([harmonic_mean(a, b) for a, b in zip(*accuracies, strict=True)])


def step_f1(scores: np.ndarray, right: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """F1 of the wrong steps, 2 · found / (flagged + wrong).

    Args:
        scores (`np.ndarray`), right (`np.ndarray`):
            Of N steps, their scores and whether they are right. Shape (N,).
        thresholds (`np.ndarray`):
            Shape (C,).

    Returns:
        `np.ndarray`: shape (C,). NaN where no step is wrong.
    """
    wrong = int((~right).sum())
    found, flagged = _below(scores[~right], thresholds), _below(scores, thresholds)
    return 2 * found / (flagged + wrong) if wrong else np.full(len(thresholds), np.nan)


def _below(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(values), thresholds, side="left")
