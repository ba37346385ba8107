"""Agreement of annotators, against figures worked out by hand."""

import math

import numpy as np
import pytest

import tiny
from trl_tokenreward import EditedAnswer, measure_agreement
from trl_tokenreward.annotation.agreement import cohens_kappa, krippendorffs_alpha, pair_f1


pytestmark = pytest.mark.any_trl

SENTENCE = "one two three four five"


def edits(*rows):
    """Answers from `(row, annotator, edited)`."""
    return [EditedAnswer(row, name, SENTENCE, edited) for row, name, edited in rows]


def test_cohens_kappa_by_hand():
    # Cohen's own kind of table: 20 and 15 alike of 50; p_o = .7, p_e = .5 * .6 + .5 * .4 = .5.
    assert cohens_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4, abs=1e-12)
    assert cohens_kappa([[0, 5], [5, 0]]) == pytest.approx(-1)
    assert cohens_kappa([[0, 7], [0, 0]]) == pytest.approx(
        0
    )  # one always marks, the other never: no better than chance
    assert cohens_kappa([[3, 0], [0, 4]]) == pytest.approx(1)
    both = cohens_kappa(np.array([[[20, 5], [10, 15]], [[9, 0], [0, 0]]]))
    assert both[0] == pytest.approx(0.4) and math.isnan(both[1])
    assert math.isnan(cohens_kappa([[0, 0], [0, 0]])) and math.isnan(cohens_kappa([[0, 0], [0, 8]]))


def test_f1_by_hand():
    assert pair_f1([[20, 5], [10, 15]]) == pytest.approx(30 / 45)
    assert pair_f1([[20, 5], [10, 0]]) == 0
    assert math.isnan(pair_f1([[20, 0], [0, 0]]))


def test_krippendorffs_alpha_by_hand():
    # Krippendorff (2011), section A, two observers and ten items: alpha = .095.
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    disagreement = sum(a != b for a, b in zip(first, second, strict=True))  # n_u0 n_u1 / (2 - 1)
    ones = sum(first + second)
    assert (disagreement, ones) == (4, 6)
    assert krippendorffs_alpha([4, 14, 6]) == pytest.approx(1 - 19 * 4 / (14 * 6), abs=1e-12)
    assert round(float(krippendorffs_alpha([4, 14, 6])), 3) == 0.095
    assert krippendorffs_alpha([0, 3, 3]) == 1
    assert math.isnan(krippendorffs_alpha([0, 9, 0])) and math.isnan(krippendorffs_alpha([0, 0, 9]))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"`table` must have the shape \(\.\.\., 2, 2\), but has \(2, 3\)"):
        cohens_kappa(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`marks` must have the shape \(\.\.\., 3\), but has \(2,\)"):
        krippendorffs_alpha([1, 2])


def test_three_annotators_and_a_row_that_one_of_them_has_not_seen():
    report = measure_agreement(
        edits(
            ("a", "ada", "one 2 three four five"),  # 01000
            ("a", "bob", "one 2 3 four five"),  # 01100
            ("a", "cy", "one two three four five"),  # 00000, nothing wrong
            ("b", "ada", "one two three four"),  # 00001
            ("b", "bob", "one two three four 5"),  # 00001
            ("c", "cy", "1 2 3 four five"),  # alone: no part in it
        )
    )
    assert (report.unit, report.rows, report.words) == ("words", 2, 10)
    pairs = {pair.annotators: pair for pair in report.pairs}
    assert sorted(pairs) == [("ada", "bob"), ("ada", "cy"), ("bob", "cy")]
    ada_bob = pairs["ada", "bob"]
    # n_00 = 7, n_01 = 1, n_11 = 2: p_o = .9, p_e = .8 * .7 + .2 * .3 = .62.
    assert (ada_bob.rows, ada_bob.words, ada_bob.same) == (2, 10, 0.9)
    assert ada_bob.kappa.value == pytest.approx(0.28 / 0.38) and ada_bob.f1.value == pytest.approx(4 / 5)
    ada_cy = pairs["ada", "cy"]
    assert (ada_cy.rows, ada_cy.words, ada_cy.same, ada_cy.kappa.value, ada_cy.f1.value) == (1, 5, 0.8, 0, 0)
    # Row a, three labels a word: words 2 and 3 disagree, 1 * 2 / 2 each. Row b: none. n_0 = 12 + 8, n_1 = 3 + 2.
    assert report.alpha.value == pytest.approx(1 - 24 * 2 / (20 * 5))
    # Of all pairs: n_11 = 2, n_01 + n_10 = 1 + 1 + 2.
    assert report.f1.value == pytest.approx(4 / 8)
    assert "| ada and bob | 2 | 10 | 90.0% |" in report.table()
    assert report.to_dict()["pairs"][0]["annotators"] == ["ada", "bob"]


def test_an_insertion_counts_on_the_word_right_after_it_or_on_the_last():
    one = measure_agreement(edits((0, "a", "one two new three four five"), (0, "b", "one two 3 four five")))
    assert one.pairs[0].same == 1 and one.pairs[0].f1.value == 1
    end = measure_agreement(edits((0, "a", "one two three four five more"), (0, "b", "one two three four 5")))
    assert end.pairs[0].same == 1


def test_tokens_in_place_of_words():
    answers = edits((0, "a", "one two 3 four five"), (0, "b", "one two three four 5"))
    tokenizer = tiny.tokenizer()
    report = measure_agreement(answers, tokenizer)
    assert report.unit == "tokens" and report.words == len(tokenizer(SENTENCE).input_ids) > 5


def test_nobody_marked_anything_or_nobody_is_there():
    report = measure_agreement(edits((0, "a", SENTENCE), (0, "b", SENTENCE)))
    [pair] = report.pairs
    assert pair.same == 1 and all(math.isnan(e.value) for e in (pair.kappa, pair.f1, report.alpha, report.f1))
    assert report.to_dict()["alpha"] == {"value": None, "low": None, "high": None}
    assert "| Krippendorff's alpha | – |" in report.table()
    alone = measure_agreement(edits((0, "a", SENTENCE), (1, "b", SENTENCE)))
    assert (alone.rows, alone.words, alone.pairs) == (0, 0, ()) and math.isnan(alone.alpha.value)
    assert measure_agreement([]).rows == 0


def test_intervals_are_over_rows():
    agree = [(row, name, "one 2 three four five") for row in range(6) for name in "ab"]
    report = measure_agreement(edits(*agree))
    assert report.alpha.value == report.alpha.low == report.alpha.high == 1
    mixed = [*agree, *[(row, "a", "1 two three four five") for row in (6, 7)]]
    mixed += [(row, "b", "one two three four 5") for row in (6, 7)]
    report = measure_agreement(edits(*mixed))
    assert report.f1.value == pytest.approx(12 / 16) and report.f1.low < 12 / 16 < report.f1.high == 1
    assert report == measure_agreement(edits(*mixed))
    assert report.f1 != measure_agreement(edits(*mixed), seed=1).f1


def test_bad_answers_are_named():
    with pytest.raises(ValueError, match="ada has two answers of row 3"):
        measure_agreement(edits((3, "ada", "one"), (3, "ada", "two")))
    answers = [EditedAnswer(3, "ada", "one", "two"), EditedAnswer(3, "bob", "eins", "two")]
    with pytest.raises(ValueError, match="row 3 are not edits of one original"):
        measure_agreement(answers)
    with pytest.raises(ValueError, match="level must lie between"):
        measure_agreement([], level=1.0)
