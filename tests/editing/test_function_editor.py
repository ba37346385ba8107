"""A function as editor, and rows that have one answer alone."""

import pytest
from datasets import Dataset, Value

from trl_tokenreward.editing.checks import EditChecks
from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.editors import FunctionEditor
from trl_tokenreward.editing.tasks import as_pairs, read_tasks


pytestmark = pytest.mark.any_trl

ANSWERS = Dataset.from_list(
    [{"prompt": f"p{i}", "completion": text} for i, text in enumerate((" It is bad. ", " It is good.", " "))]
)


def edit(output, function, **kwargs):
    return edit_dataset(ANSWERS, FunctionEditor(function), output, progress=False, **kwargs)


def test_a_function_edits_answers_that_have_no_other_side(tmp_path):
    calls = []

    def praise(prompts, answers):
        calls.append((prompts, answers))
        return [answer.replace("bad", "good") for answer in answers]

    result = edit(tmp_path / "out", praise, accept_unchanged=True)
    assert result.counts == {"edited": 1, "empty": 1, "identical": 1}
    assert result.dataset.to_list() == [
        {"prompt": "p0", "chosen": " It is good. ", "rejected": " It is bad. ", "row": 0}
    ]
    assert calls == [(["p0", "p1"], [" It is bad. ", " It is good."])]  # once
    edit(tmp_path / "again", praise)
    assert [prompts for prompts, _ in calls[1:]] == [["p0", "p1"], ["p1"], ["p1"]]  # it should have changed
    with pytest.raises(ValueError, match=r"begun with other settings \(accept_unchanged\)"):
        edit(tmp_path / "out", praise)


@pytest.mark.parametrize(
    ("edited", "chosen"),
    [
        ("Hi.\nYou friend.\n\nBye now.", "Hi.\r\nYou friend.\r\n\rBye now.\r\n"),
        ("Hi.\r\nYou friend.\r\n\rBye\r\nnow.", "Hi.\r\nYou friend.\r\n\rBye\r\nnow.\r\n"),
    ],
    ids=["as language models write them", "as they are"],
)
def test_line_breaks_that_were_kept_are_the_originals(edited, chosen, tmp_path):
    rows = Dataset.from_list([{"prompt": "p", "completion": "Hi.\r\nYou fool.\r\n\rBye now.\r\n"}])
    result = edit_dataset(rows, FunctionEditor(lambda prompts, answers: [edited]), tmp_path, progress=False)
    assert result.dataset["chosen"][:] == [chosen]


@pytest.mark.parametrize("returned", [["one"], None, ["one", 2], "ab"])
def test_what_a_function_returns_is_checked(tmp_path, returned):
    with pytest.raises(ValueError, match="must return a list of 2 texts, as many as there are answers, but returned"):
        edit(tmp_path, lambda prompts, answers: returned)


def test_completions_that_are_marked_already_are_refused():
    rows = Dataset.from_list([{"prompt": "p", "completion": "a b", "completion_spans": [[0, 1]]}])
    with pytest.raises(ValueError, match=r"has `completion_spans`: its completions are marked already.*remove_columns"):
        as_pairs(rows)
    [task] = read_tasks(as_pairs(rows.remove_columns(["completion_spans"])))
    assert task.answer == "a b"


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_completions_may_be_texts_of_each_type(kind, tmp_path):
    rows = ANSWERS.cast_column("completion", Value(kind))
    editor = FunctionEditor(lambda _, answers: [answer.replace("bad", "good") for answer in answers])
    result = edit_dataset(rows, editor, tmp_path, progress=False)
    assert result.dataset["chosen"][:] == [" It is good. "] and result.dataset.features["chosen"] == Value(kind)
    with pytest.raises(ValueError, match="`completion` must be texts or messages, but has values of the type int64"):
        as_pairs(Dataset.from_dict({"prompt": ["p"], "completion": [1]}))


@pytest.mark.parametrize("text", ["Write <edited> in front, you {}.", "You {}.</edited>", "<edited>You {}</edited>!"])
def test_an_answer_may_be_about_the_tags_of_editors(text, tmp_path):
    rows = Dataset.from_list([{"prompt": "p", "completion": text.format("fool")}])
    editor = FunctionEditor(lambda prompts, answers: [answer.replace("fool", "friend") for answer in answers])
    checks = EditChecks(max_edit_ratio=1)
    result = edit_dataset(rows, editor, tmp_path, checks=checks, progress=False)
    assert result.dataset["chosen"][:] == [text.format("friend")]


def test_columns_that_a_row_lacks(tmp_path):
    rows = [{"prompt": prompt, "chosen": "b", "rejected": "a bad one", "tools": None} for prompt in ("p", None)]
    editor = FunctionEditor(lambda prompts, answers: ["a good one"] * len(answers))
    result = edit_dataset(Dataset.from_list(rows), editor, tmp_path, progress=False)
    assert [(row["prompt"], row["chosen"]) for row in result.dataset] == [("p", "a good one"), ("", "a good one")]


def test_messages_and_other_data_sets():
    question, answer = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a b"}]
    rows = as_pairs(Dataset.from_list([{"prompt": question, "completion": answer}]))
    assert rows[0] == {"prompt": question, "rejected": answer, "chosen": []}
    [task] = read_tasks(rows)
    assert (task.prompt, task.answer, task.unfit) == (question, "a b", "")
    pairs = Dataset.from_list([{"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}])
    assert as_pairs(pairs) is pairs
