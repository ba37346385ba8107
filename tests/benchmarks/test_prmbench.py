"""The split of PRMBench by problem, and the pooled figures."""

import json

import numpy as np
import pytest

import prmbench
from shared_data import shared_file
from trl_tokenreward.reward_model.step_evaluation import step_report


pytestmark = pytest.mark.any_trl


def test_no_problem_is_in_two_folds():
    rows = [{"original_question": f"q{i % 20}"} for i in range(60)]
    folds = prmbench.folds_of(rows)
    assert all(len({fold for row, fold in zip(rows, folds, strict=True) if row == one}) == 1 for one in rows)
    assert sorted(folds.count(fold) for fold in range(5)) == [12] * 5
    assert folds == prmbench.folds_of(rows) != prmbench.folds_of(rows, seed=1)


@pytest.mark.parametrize("labels", prmbench.LABELS)
def test_real_solutions_are_split_by_problem(labels):
    parts, counts = prmbench.read(shared_file(prmbench.FILE), labels)
    assert counts == {"rows": 267, "kept": 531, "a step is empty": 2, "a wrong step that is not there": 1}
    questions = [{row["prompt"] for row in part} for part in parts]
    assert all(not one & other for i, one in enumerate(questions) for other in questions[:i])
    assert all(0 < sum(bool(row["completion_spans"]) for row in part) < len(part) for part in parts)


def part(thresholds, shift):
    """Two problems: a wrong solution that is found exactly, and a right one of which nothing is flagged."""
    return {
        "thresholds": thresholds,
        "solution": [0, 0, 1],
        "score": [1 + shift, -1 + shift, 2 + shift],
        "right": [True, False, True],
        "problem": [0, 1],
        "intervals": [[-1 + shift, 1 + shift], [-np.inf, 2 + shift]],
        "dropped": {"rows": 2, "kept": 2, "too_long": 0},
    }


def test_each_fold_has_its_own_thresholds():
    steps = prmbench.pooled([part([0, 0], 0), part([5, 5], 5)])
    assert steps.problem.tolist() == [0, 1, 2, 3] and steps.dropped["rows"] == 4
    report = step_report(steps, resamples=5)
    assert report.step_f1.value == report.first_wrong_f1.value == report.step_auroc.value == 1
    report = step_report(prmbench.pooled([part([0, 0], 0), part([0, 0], 5)]), resamples=5)
    assert report.wrong_accuracy.value == 0.5 and report.right_accuracy.value == 1


def test_the_report_is_of_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(prmbench, "RESULTS", tmp_path / "results.md")
    result = {
        "labels": "last_token",
        "epochs": 2,
        "fold": 1,
        "counts": {"rows": 2, "kept": 3, "a step is empty": 1},
        "trained on": {"kept": 7},
        "scored": {"last": part([0, 0], 0)},
        "steps": 4,
        "seconds": 120,
        "commit": "abc",
    }
    (tmp_path / "a.json").write_text(json.dumps(result))
    prmbench.write_report(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "| last token | 2 | last | 1 | 1.000 (" in text and "1 of 10 runs" in text
    assert "| last token | 2 | 1 | 7 | 4 | 2 | abc |" in text and "a step is empty: 1" in text
    assert "| every step flagged | | | | 0.500 | 0.333 | 0.500 |" in text
