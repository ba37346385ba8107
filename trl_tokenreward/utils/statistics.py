"""Statistics of evaluations, with numpy alone: outcomes, win rates, bootstrap intervals, and how figures are
written."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_text


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval, `low` to `high`. NaN where there was nothing to measure."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


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
    check_bootstrap(level, resamples)
    rng = np.random.default_rng(seed)
    means = np.array([rng.choice(observed, size=len(observed)).mean() for _ in range(resamples)])
    return quantiles(means, level)


def length_controlled_win_rate(
    outcomes: Sequence[float], length_differences: Sequence[float], counts: np.ndarray | None = None
) -> float | np.ndarray:
    r"""The win rate that is left at equal lengths, after AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475).

    With d the difference in length, the outcomes y follow a logistic regression, without the paper's term for the
    difficulty of a prompt, and the result is its value at d = 0:

        P(y = 1) = sigmoid(a + b tanh(d / std(d))),   win rate = sigmoid(a)

    Where the fit does not exist, nothing can be told about equal lengths and the result is the plain win rate: if all
    lengths differ by the same, if all outcomes are 1 or all are 0, or if the wins are separated from the losses by
    length (no loss is longer than any win, or none is shorter). A tie counts as half a win and half a loss.

    Args:
        outcomes (`Sequence[float]`):
            n numbers from 0 to 1.
        length_differences (`Sequence[float]`):
            n lengths of the answers that win at 1, less those of the others, in any unit.
        counts (`np.ndarray`, *optional*):
            Shape (R, n): how often each pair stands in each of R bootstrap samples. `std(d)` stays that of all.

    Returns:
        `float`, or with `counts` an array of shape (R,).
    """
    y, d = _finite(outcomes, "outcomes"), _finite(length_differences, "length_differences")
    if len(y) != len(d) or y.min() < 0 or y.max() > 1:
        raise ValueError("outcomes are numbers from 0 to 1, and length_differences has one number for each of them")
    x = np.tanh(d / d.std()) if d.std() > 0 else np.zeros_like(d)
    n = np.ones((1, len(y))) if counts is None else np.asarray(counts, dtype=float)
    rates = n @ y / n.sum(1)
    win, loss = (n > 0) & (y > 0), (n > 0) & (y < 1)
    separated = np.where(win, x, np.inf).min(1) >= np.where(loss, x, -np.inf).max(1)
    separated |= np.where(win, x, -np.inf).max(1) <= np.where(loss, x, np.inf).min(1)
    if not separated.all():
        intercepts = _fit_logistic(x, y, n[~separated])
        rates[~separated] = 1 / (1 + np.exp(-intercepts))
    return float(rates[0]) if counts is None else rates


def _fit_logistic(x: np.ndarray, y: np.ndarray, counts: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """Intercepts, (R,), of R logistic regressions of y on x, both (n,), weighted by counts, (R, n): Newton's method
    with halved steps."""

    def loss(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        z = a[:, None] + b[:, None] * x
        return (counts * (np.logaddexp(0, z) - y * z)).sum(1) + ridge / 2 * (a**2 + b**2)

    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(100):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * x)))
        residuals, weights = counts * (p - y), counts * p * (1 - p)
        gradient_a, gradient_b = residuals.sum(1) + ridge * a, residuals @ x + ridge * b
        aa, ab, bb = weights.sum(1) + ridge, weights @ x, weights @ x**2 + ridge
        determinant = aa * bb - ab**2
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        before, scale = loss(a, b), np.ones(len(counts))
        for _ in range(40):
            worse = loss(a - scale * step_a, b - scale * step_b) > before + 1e-12
            if not worse.any():
                break
            scale[worse] /= 2
        a, b = a - scale * step_a, b - scale * step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-10:
            break
    return a


def resampled(size: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of `size` rows stands in each bootstrap sample, (size,)."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(size, size=size), minlength=size)


def quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(value: float, samples: np.ndarray, level: float) -> Estimate:
    """A figure with the interval of its bootstrap samples, (R,). Those that drew nothing to measure are NaN and are
    ignored."""
    samples = samples[~np.isnan(samples)]
    return Estimate(float(value), *(quantiles(samples, level) if len(samples) else (math.nan, math.nan)))


def auroc_of_ranks(rank: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> float:
    """AUROC of items that count so many times each; all of shape (N,). Equal scores have one rank. NaN where there is
    nothing to compare."""
    size = int(rank.max(initial=-1)) + 1
    above, below = (np.bincount(rank[part], counts[part], size) for part in (labels, ~labels))
    return ratio(float(above @ (below.cumsum() - below / 2)), float(above.sum() * below.sum()))


def ratio(part: float, whole: float) -> float:
    """part / whole, NaN where the whole is 0."""
    return float(part / whole) if whole else math.nan


def check_bootstrap(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but is {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, but is {resamples}")


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a list of at least one number, but has the shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not a finite number")
    return array


def json_ready(value: Any) -> Any:
    """JSON has no NaN; it becomes null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def write_figures(path: Path, figures: Any) -> None:
    """Writes figures to a JSON file, whose folder is made if there is none; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(json_ready(figures), indent=2) + "\n")


def markdown(corner: str, columns: str, rows: dict[str, Any]) -> str:
    lines = [f"| {corner} | {columns} |", f"|{' --- |' * (columns.count('|') + 2)}"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def best_threshold(measure: Callable[[np.ndarray], np.ndarray], scores: np.ndarray) -> float:
    """The threshold at which a measure of what scores below it is highest, midway between two scores; the lowest of
    several.

    Args:
        measure (`Callable[[np.ndarray], np.ndarray]`):
            Of thresholds, shape (C,).
        scores (`np.ndarray`):
            Where the measure changes. Shape (N,), finite, N ≥ 1.
    """
    candidates = threshold_candidates(scores)
    return float(candidates[np.argmax(measure(candidates))])


def threshold_candidates(scores: np.ndarray) -> np.ndarray:
    """Thresholds midway between scores, (N,), and one more on either side, so that nothing or everything is below. In
    rising order."""
    scores = np.unique(scores)
    return np.concatenate([scores[:1], (scores[:-1] + scores[1:]) / 2, scores[-1:] + 1])
