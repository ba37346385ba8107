"""The figures of the benchmark of rounds, by hand."""

import pytest
import rounds


pytestmark = pytest.mark.any_trl


def points(*values):
    return [
        {"update": 4 * place, "kl": kl, "score": score, "win_rate": 0.5, "length": 20.0}
        for place, (kl, score) in enumerate(values)
    ]


def test_the_score_at_a_kl_lies_on_a_line_between_two_examinations():
    curve = points((0, 2), (2, 4), (1, 9), (3, 5))
    assert rounds.score_at(curve, 0.5) == 2.5  # where it is first reached
    assert rounds.score_at(curve, 2.5) == pytest.approx(6)
    assert rounds.score_at(curve, 4) is None


def test_the_verdict():
    assert rounds.verdict([1.0]) == "One seed does not tell which arm is better."
    assert rounds.verdict([1.0, -1.0, 0.5]).startswith("Three rounds do not beat one round")
    assert rounds.verdict([1.0, 1.1, 0.9]) == "Three rounds beat one round with as many edits here."
    assert rounds.verdict([-1.0, -1.1, -0.9]) == "One round beats three rounds with as many edits here."


def test_the_report():
    figures = {
        "samples": {"prompts": 150, "unfinished": 1},
        "edits": {"edited": 100, "unchanged": 40},
        "reward_model": dict.fromkeys(("before", "after"), {"token_auroc": 0.9, "accuracy": 0.8}),
    }
    made = {
        arm: {"curve": points((0, 2), (2, 4 + place)), "rounds": [figures] * count}
        for place, (arm, count) in enumerate(zip(rounds.ARMS, (3, 1, 0), strict=True))
    }
    text = rounds.report([7, 8], [made, made], "the command")
    assert "| judge's score | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) | 5.00 (5.00 to 5.00) |" in text
    assert "One round beats three rounds with as many edits here." in text
    assert "| 1 | 3.00 (3.00 to 3.00) (2) | 3.50 (3.50 to 3.50) (2) |" in text
    assert "| three rounds, 3 | 150 | 1 | 100 | 40 | 0.900 | 0.900 | 0.800 | 0.800 |" in text
