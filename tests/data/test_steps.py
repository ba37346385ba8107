"""Solutions in steps: their labels as spans of characters, worked by hand, at random, and on PRMBench."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_data import shared_file
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.importers import import_dataset
from trl_tokenreward.data.steps import join_steps, prmbench_rows, steps_row, stepwise_row
from trl_tokenreward.data.steps import read_steps as read_steps_of
from trl_tokenreward.utils.loading import load_split


pytestmark = pytest.mark.any_trl

STEPWISE = {"prompt": "1 + 1 + 1?\n", "completions": ["1 + 1 = 3.", " So it is 4. "], "labels": [False, True]}
PRMBENCH = {
    "original_question": "2 * 3?",
    "modified_question": "2 * 4?",
    "original_process": ["2 * 3 = 6.", "So 6."],
    "modified_process": ["2 * 4 = 8.", "8 = 9.", "So 9."],
    "error_steps": [2, 3],
}


def read_steps(row):
    return read_steps_of(row, row["completion"])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_token_of_a_step():
    assert stepwise_row(STEPWISE) == {
        "prompt": "1 + 1 + 1?\n",
        "completion": "1 + 1 = 3.\n So it is 4. ",
        "completion_spans": [[0, 10]],
        "completion_judged": [[0, 10], [12, 23]],
    }


def test_the_last_token_of_a_step():
    row = stepwise_row(STEPWISE, step_separator=" ## ", step_labels="last_token")
    assert row["completion"] == "1 + 1 = 3. ##  So it is 4. "
    assert row["completion_spans"] == [[9, 10]] and row["completion_judged"] == [[9, 10], [25, 26]]
    assert row["completion"][25] == "."


def test_a_step_that_nobody_judged():
    row = stepwise_row({**STEPWISE, "labels": [None, 0]})
    assert row["completion_spans"] == row["completion_judged"] == [[12, 23]]


def test_prmbench_gives_both_solutions():
    right, wrong = prmbench_rows(PRMBENCH)
    assert right == {
        "prompt": "2 * 3?\n",
        "completion": "2 * 3 = 6.\nSo 6.",
        "completion_spans": [],
        "completion_judged": [[0, 10], [11, 16]],
    }
    assert wrong["prompt"] == "2 * 4?\n" and wrong["completion"] == "2 * 4 = 8.\n8 = 9.\nSo 9."
    assert wrong["completion_spans"] == [[11, 17], [18, 23]]
    assert wrong["completion_judged"] == [[0, 10], [11, 17], [18, 23]]


@pytest.mark.parametrize(
    ("convert", "row", "reasons"),
    [
        (stepwise_row, {**STEPWISE, "completions": [], "labels": []}, "a solution without steps"),
        (stepwise_row, {**STEPWISE, "completions": ["a", " \n"]}, "a step is empty"),
        (stepwise_row, {**STEPWISE, "labels": [None, None]}, "no step is judged"),
        (prmbench_rows, {**PRMBENCH, "error_steps": [4]}, [dict, "a wrong step that is not there"]),
        (prmbench_rows, {**PRMBENCH, "error_steps": []}, [dict, "a wrong solution without a wrong step"]),
        (prmbench_rows, {**PRMBENCH, "original_process": ["", "6"]}, ["a step is empty", dict]),
    ],
)
def test_reasons_to_drop_a_solution(convert, row, reasons):
    given = convert(row)
    if isinstance(reasons, str):
        assert given == reasons
        return
    assert [type(one) if isinstance(one, dict) else one for one in given] == reasons


@pytest.mark.parametrize(
    ("convert", "change", "message"),
    [
        (stepwise_row, {"prompt": None}, "`prompt` must be a text, but is None"),
        (stepwise_row, {"completions": "a"}, "`completions` must be a list, but is 'a'"),
        (stepwise_row, {"completions": ["a", 2]}, "step 1 of `completions` must be a text, but is 2"),
        (stepwise_row, {"labels": [True]}, "`completions` has 2 steps, but `labels` has 1 labels"),
        (stepwise_row, {"labels": [True, -1]}, "label 1 of `labels` must be true, false or null, but is -1"),
        (stepwise_row, {"labels": [0.5, True]}, "label 0 of `labels` must be true, false or null, but is 0.5"),
        (prmbench_rows, {"error_steps": [0]}, r"`error_steps` must be numbers of steps, counted from 1, but is \[0\]"),
        (prmbench_rows, {"error_steps": [True]}, "`error_steps` must be numbers of steps"),
        (prmbench_rows, {"modified_process": [None]}, "step 0 of `modified_process` must be a text, but is None"),
    ],
)
def test_a_malformed_row(convert, change, message):
    row = {**(STEPWISE if convert is stepwise_row else PRMBENCH), **change}
    with pytest.raises(ValueError, match=message):
        convert(row)
    missing = {name: value for name, value in row.items() if name not in change}
    with pytest.raises(ValueError, match=f"has no `{next(iter(change))}`"):
        convert(missing)


def test_bad_settings():
    with pytest.raises(ValueError, match="`step_labels` must be one of .*'last_token'.*, not 'first'"):
        steps_row("", ["a"], [True], step_labels="first")
    with pytest.raises(ValueError, match="there are 1 steps, but 2 labels"):
        steps_row("", ["a"], [True, True])
    with pytest.raises(ValueError, match="step 1 is empty"):
        join_steps(["a", " "])


def test_steps_are_read_back():
    row = stepwise_row(STEPWISE)
    assert read_steps(row) == ([[0, 10], [12, 23]], [False, True])
    # People mark a part of a step.
    assert read_steps({**row, "completion_spans": [[14, 15]]})[1] == [True, False]
    # White space at the edges marks no token, as in training.
    assert read_steps({**row, "completion_judged": [[0, 11], [11, 24]]})[0] == [[0, 10], [12, 23]]
    with pytest.raises(ValueError, match=r"`completion_spans`: the span \[10, 11\) is in no judged step"):
        read_steps({**row, "completion_spans": [[10, 11]]})
    with pytest.raises(ValueError, match=r"`completion_judged`: the step \[3, 12\) begins before 10"):
        read_steps({**row, "completion_judged": [[0, 10], [3, 12]]})
    with pytest.raises(ValueError, match=r"`completion_judged`: the span \[0, 99\) must lie within the 24 characters"):
        read_steps({**row, "completion_judged": [[0, 99]]})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    solution=st.lists(st.tuples(texts, st.sampled_from([True, False, None])), max_size=6),
    separator=st.sampled_from(["\n", "\n\n", " ", "", "<step>"]),
    labels=st.sampled_from(["every_token", "last_token"]),
)
def test_spans_are_the_steps_of_any_solution(solution, separator, labels):
    steps = [step for step, _ in solution]
    given = {"prompt": "", "completions": steps, "labels": [label for _, label in solution]}
    row = stepwise_row(given, separator, labels)
    if isinstance(row, str):
        assert not steps or not all(step.strip() for step in steps) or all(label is None for _, label in solution)
        return
    assert row["completion"] == separator.join(steps)
    judged = [(step.strip(), label) for step, label in solution if label is not None]
    part = slice(None) if labels == "every_token" else slice(-1, None)
    marked = [row["completion"][start:end] for start, end in row["completion_judged"]]
    assert marked == [step[part] for step, _ in judged]
    assert read_steps(row)[1] == [label for _, label in judged]


junk = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda x: st.lists(x, max_size=3), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(
    convert=st.sampled_from([stepwise_row, prmbench_rows]),
    changes=st.dictionaries(st.sampled_from([*STEPWISE, *PRMBENCH]), junk, max_size=3),
)
def test_any_row_is_converted_dropped_or_refused_by_its_column(convert, changes):
    row = {**(STEPWISE if convert is stepwise_row else PRMBENCH), **changes}
    try:
        converted = convert(row)
    except ValueError as error:
        assert any(f"`{column}`" in str(error) for column in changes)
        return
    for one in converted if isinstance(converted, list) else [converted]:
        if isinstance(one, dict):
            steps, right = read_steps(one)
            assert len(steps) == len(right) > 0


def test_import_stepwise(tmp_path):
    rows = [STEPWISE, {**STEPWISE, "labels": [None, None]}, {**STEPWISE, "completions": ["a", ""]}]
    imported = import_dataset("stepwise", write(tmp_path / "s.jsonl", rows))
    assert imported.dataset.to_list() == [stepwise_row(STEPWISE)]
    assert imported.counts == {"rows": 3, "kept": 1, "no step is judged": 1, "a step is empty": 1}
    with pytest.raises(ValueError, match="Row 1 of .*: `completions` has 2 steps, but `labels` has 1 labels"):
        import_dataset("stepwise", write(tmp_path / "bad.jsonl", [STEPWISE, {**STEPWISE, "labels": [True]}]))
    with pytest.raises(ValueError, match=r"No solution is left of .* \(rows: 1, kept: 0, no step is judged: 1\)"):
        import_dataset("stepwise", write(tmp_path / "none.jsonl", rows[1:2]))


def test_settings_of_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'paradetox' has no steps: \['step_labels'\] are for \['stepwise', 'prm"):
        import_dataset("paradetox", tmp_path, step_labels="last_token")
    with pytest.raises(ValueError, match="`step_labels` must be one of"):
        import_dataset("stepwise", tmp_path, step_labels="first")


def test_the_command_has_the_settings(tmp_path, capsys):
    source, output = write(tmp_path / "p.jsonl", [PRMBENCH]), tmp_path / "out.jsonl"
    settings = ["--step-separator", " ", "--step-labels", "last_token"]
    assert cli.main(["import", "prmbench", str(source), str(output), *settings]) == 0
    assert "kept       2" in capsys.readouterr().out
    assert load_split(output, "train").to_list() == prmbench_rows(PRMBENCH, " ", "last_token")


def test_real_prmbench():
    imported = import_dataset("prmbench", shared_file("prmbench-step-contradiction.jsonl.gz"))
    reasons = {"a step is empty": 2, "a wrong step that is not there": 1}
    assert imported.counts == {"rows": 267, "kept": 531, **reasons}
    assert sum(map(len, imported.dataset["completion_spans"])) == 404
    wrong = imported.dataset[1]
    [[start, end]] = wrong["completion_spans"]
    assert wrong["completion"][start:end].startswith("Assume 5x-1>0, x>")
