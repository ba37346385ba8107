"""Comparing two policies by the scores of their answers to the same prompts."""

from collections.abc import Sequence

import numpy as np


def pairwise_outcomes(scores_a: Sequence[float], scores_b: Sequence[float]) -> list[float]:
    """Returns, prompt by prompt, 1 where `scores_a` is higher, 0 where it is lower and 0.5 where they are equal.

    The mean of the outcomes is the [`win_rate`], and [`bootstrap_interval`] of them is its interval.

    Args:
        scores_a (`Sequence[float]`):
            Scores of the answers of A, one for each prompt.
        scores_b (`Sequence[float]`):
            Scores of the answers of B to the same prompts, in the same order.

    Raises:
        `ValueError`: if the lengths differ, if there are no scores, or if one of them is not a finite number.
    """
    a, b = _finite(scores_a, "scores_a"), _finite(scores_b, "scores_b")
    if len(a) != len(b):
        raise ValueError(
            f"scores_a and scores_b belong to the same prompts, but there are {len(a)} and {len(b)} of them"
        )
    return ((a > b) + 0.5 * (a == b)).tolist()


def win_rate(scores_a: Sequence[float], scores_b: Sequence[float]) -> float:
    """The share of prompts at which A scores higher than B; a tie counts half. See [`pairwise_outcomes`]."""
    return float(np.mean(pairwise_outcomes(scores_a, scores_b)))


def bootstrap_interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of `values`.

    Efron (1979): means of `resamples` samples of the same size, drawn with replacement; the interval leaves out
    `(1 - level) / 2` of them at either end. With a few dozen values or fewer it is somewhat too narrow.

    Args:
        values (`Sequence[float]`):
            Independent observations, such as the outcomes of [`pairwise_outcomes`].
        seed (`int`):
            The same seed gives the same interval.
        level (`float`, *optional*, defaults to `0.95`):
            Coverage, between 0 and 1.
        resamples (`int`, *optional*, defaults to `2000`):
            Number of samples drawn.

    Raises:
        `ValueError`: if there are no values, one is not finite, or `level` or `resamples` is out of range.
    """
    observed = _finite(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but is {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, but is {resamples}")
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(observed, size=len(observed)).mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a list of at least one number, but has the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not a finite number")
    return array
