import math

import pytest

from evaluation import bootstrap_interval, pairwise_outcomes, win_rate


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
