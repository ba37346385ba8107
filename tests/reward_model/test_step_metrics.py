"""Scores and metrics of steps, by hand and by brute force."""

import numpy as np
import pytest

from trl_tokenreward.reward_model.step_metrics import (
    first_wrong_f1,
    harmonic_mean,
    step_f1,
    step_scores,
    threshold_interval,
)
from trl_tokenreward.utils.statistics import best_threshold


pytestmark = pytest.mark.any_trl


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("mean", [2.0, -1.0]), ("min", [1.0, -4.0]), ("last", [3.0, 2.0])]
)
def test_a_steps_score_by_hand(aggregation, expected):
    # The token at [5, 6) is the separator's, and the one at [6, 8) begins with white space before the step.
    spans = [(0, 2), (2, 5), (5, 6), (6, 8), (8, 9)]
    scores = step_scores([1.0, 3.0, 100.0, -4.0, 2.0], spans, [[0, 5], [7, 9]], aggregation)
    assert scores.tolist() == expected


def test_bad_steps():
    with pytest.raises(ValueError, match=r"step 1, the characters \[4, 6\), has no token"):
        step_scores([1.0], [(0, 3)], [[0, 2], [4, 6]])
    with pytest.raises(ValueError, match="there are 1 token scores, but 2 token spans"):
        step_scores([1.0], [(0, 3), (3, 4)], [[0, 2]])
    with pytest.raises(ValueError, match="`aggregation` must be one of .* not 'max'"):
        step_scores([1.0], [(0, 3)], [[0, 2]], "max")


def test_intervals_by_hand():
    scores = np.array([1.0, -2.0, 0.0, -3.0])
    assert threshold_interval(scores, np.array([True] * 4)) == (-np.inf, -3.0)
    assert threshold_interval(scores, np.array([True, False, True, False])) == (-2.0, 1.0)
    assert threshold_interval(scores, np.array([False, True, True, True])) == (1.0, np.inf)
    # The step before scores lower: no threshold finds the wrong one first.
    low, high = threshold_interval(scores, np.array([True, True, False, True]))
    assert (low, high) == (0.0, -2.0)


def test_processbench_by_hand():
    """Three wrong solutions, of which one is found exactly, and two right ones, of which both have no flagged step."""
    solutions = [([1, -1], [1, 0]), ([-1, -1], [1, 0]), ([1, 1], [0, 1]), ([1, 1], [1, 1]), ([1], [1])]
    intervals = np.array([threshold_interval(np.array(s), np.array(r, dtype=bool)) for s, r in solutions])
    wrong = np.array([True, True, True, False, False])
    [f1] = first_wrong_f1(intervals, wrong, np.array([0.0]))
    assert f1 == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert first_wrong_f1(intervals, wrong, np.array([-9.0, 9.0])).tolist() == [0.0, 0.0]
    assert np.isnan(first_wrong_f1(intervals[:3], wrong[:3], np.array([0.0]))).all()
    assert harmonic_mean(0.0, 0.0) == 0.0 and np.isnan(harmonic_mean(np.nan, 0.0))


def test_both_f1_by_brute_force():
    rng = np.random.default_rng(0)
    solutions = []
    for length in rng.integers(1, 6, 60):
        right = rng.random(length) < 0.8
        # Rounded, so that there are ties.
        solutions.append((np.round(right + rng.normal(size=length), 1), right))
    intervals = np.array([threshold_interval(*solution) for solution in solutions])
    wrong = np.array([not right.all() for _, right in solutions])
    scores, right = map(np.concatenate, zip(*solutions, strict=True))
    thresholds = np.concatenate([np.unique(scores), np.unique(scores) + 0.05, [-99.0, 99.0]])
    for threshold, of_first, of_steps in zip(
        thresholds, first_wrong_f1(intervals, wrong, thresholds), step_f1(scores, right, thresholds), strict=True
    ):
        hits = []
        for of_solution, labels in solutions:
            flagged = [i for i, score in enumerate(of_solution) if score < threshold]
            errors = [i for i, label in enumerate(labels) if not label]
            hits.append(flagged[:1] == errors[:1])
        a, b = np.mean(np.array(hits)[wrong]), np.mean(np.array(hits)[~wrong])
        assert of_first == pytest.approx(2 * a * b / (a + b) if a + b else 0)
        flags = scores < threshold
        assert of_steps == pytest.approx(2 * (flags & ~right).sum() / (flags.sum() + (~right).sum()))
    best = best_threshold(lambda c: first_wrong_f1(intervals, wrong, c), scores)
    assert first_wrong_f1(intervals, wrong, np.array([best]))[0] == first_wrong_f1(intervals, wrong, thresholds).max()
    assert best not in scores


def test_the_threshold_may_flag_nothing_or_everything():
    scores = np.array([1.0, 2.0])
    assert best_threshold(lambda c: -c, scores) == 1.0  # nothing is below
    assert best_threshold(lambda c: c, scores) == 3.0
