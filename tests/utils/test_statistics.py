import math

import numpy as np
import pytest

from trl_tokenreward.utils.statistics import bootstrap_interval, length_controlled_win_rate, pairwise_outcomes, win_rate


pytestmark = pytest.mark.any_trl


def test_win_rate_counts_a_tie_half():
    assert pairwise_outcomes([3.0, 1.0, 2.0, 5.0], [1.0, 3.0, 2.0, 4.0]) == [1.0, 0.0, 0.5, 1.0]
    assert win_rate([3.0, 1.0, 2.0, 5.0], [1.0, 3.0, 2.0, 4.0]) == 0.625


def test_win_rates_of_both_sides_add_up_to_one():
    a, b = [1.0, 2.0, 2.0, 7.0, -1.0], [2.0, 2.0, 1.0, 3.0, 0.0]
    assert win_rate(a, b) + win_rate(b, a) == 1.0
    assert win_rate(a, a) == 0.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [1.0, 2.0], "there are 1 and 2"),
        ([], [], "scores_a must be a list of at least one number"),
        ([1.0, 2.0], [0.0, math.nan], r"scores_b\[1\] is not a finite number"),
        ([1.0, math.inf], [0.0, 0.0], r"scores_a\[1\] is not a finite number"),
    ],
)
def test_win_rate_refuses_what_it_cannot_compare(a, b, message):
    with pytest.raises(ValueError, match=message):
        win_rate(a, b)


def test_bootstrap_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval([0.5] * 20, seed=0) == (0.5, 0.5)


def test_bootstrap_interval_is_near_the_normal_one():
    # 200 wins of 400: mean .5, standard error sqrt(.25 / 400) = .025, so .5 -+ 1.96 * .025 = (.451, .549).
    low, high = bootstrap_interval([0.0, 1.0] * 200, seed=0)
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_bootstrap_interval_is_seeded_and_widens_with_the_level():
    values = [0.0, 1.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2, resamples=7)
    narrow, wide = bootstrap_interval(values, seed=1, level=0.5), bootstrap_interval(values, seed=1, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"values": []},
        {"values": [1.0, math.nan]},
        {"values": [[1.0], [2.0]]},
        {"values": [1.0], "level": 95},
        {"values": [1.0], "resamples": 0},
    ],
)
def test_bootstrap_interval_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError):
        bootstrap_interval(**arguments, seed=0)


# --- length control --------------------------------------------------------------------------------------------------


def test_length_control_of_two_lengths_is_known_by_hand():
    # x is +-tanh(1). A model with as many parameters as lengths fits both rates: .8 where longer, .4 where shorter. At
    # x = 0 its logit is the mean of theirs.
    outcomes = [1, 1, 1, 1, 0] + [1, 1, 0, 0, 0]
    differences = [7] * 5 + [-7] * 5
    logit = (math.log(0.8 / 0.2) + math.log(0.4 / 0.6)) / 2
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    # The unit of the lengths says nothing, and the two sides add up to one.
    assert length_controlled_win_rate(outcomes, [d / 7 for d in differences]) == pytest.approx(0.62020, abs=1e-5)
    swapped = length_controlled_win_rate([1 - y for y in outcomes], [-d for d in differences])
    assert swapped == pytest.approx(1 - 0.62020, abs=1e-5)


def by_search(y, x, counts):
    """The win rate at x = 0 of the likeliest logistic regression, found by a search that knows nothing of
    derivatives."""
    a, b, width = 0.0, 0.0, 4.0

    def likelihood(a, b):
        z = a + b * x
        return (counts * (y * z - np.logaddexp(0, z))).sum()

    while width > 1e-7:
        grid = np.linspace(-width, width, 9)
        a, b = max(((a + i, b + j) for i in grid for j in grid), key=lambda point: likelihood(*point))
        width /= 2
    return 1 / (1 + math.exp(-a))


def test_length_control_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(0)
    d = rng.normal(3, 8, 40)
    y = (rng.random(40) < 1 / (1 + np.exp(0.4 - 0.15 * d))).astype(float)
    y[:6] = [0.5, 0.25, 1, 0, 0.5, 0.75]
    x = np.tanh(d / d.std())
    rate = length_controlled_win_rate(y, d)
    assert rate == pytest.approx(by_search(y, x, np.ones(40)), abs=1e-5) and abs(rate - y.mean()) > 0.03
    counts = np.stack([np.bincount(rng.integers(40, size=40), minlength=40) for _ in range(3)])
    expected = [by_search(y, x, row) for row in counts]  # of samples with the deviation of all
    assert length_controlled_win_rate(y, d, counts) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("outcomes", "differences"),
    [
        ([1, 0, 1, 1], [3, 3, 3, 3]),  # all differ by the same
        ([1, 1, 1], [1, -2, 5]),
        ([0, 0, 0], [1, -2, 5]),
        ([1, 1, 0], [4, 2, 1]),  # every win is longer than every loss
        ([1, 0, 0], [-3, 2, 1]),
        ([1, 1, 0, 0], [4, 2, 2, 1]),  # at most as long
        ([1, 0.5, 0], [4, 2, 1]),
    ],
)
def test_length_control_is_the_plain_rate_where_there_is_no_fit(outcomes, differences):
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(np.mean(outcomes))
