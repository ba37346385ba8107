"""The evaluation of process reward models, with a model whose token scores are known by hand."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

import ppo_runs
import tiny
from trl_tokenreward import TokenRewardModel, evaluate_steps
from trl_tokenreward.data.preprocessing import prepare_dataset
from trl_tokenreward.data.steps import steps_row
from trl_tokenreward.reward_model.metrics import token_auroc
from trl_tokenreward.reward_model.step_evaluation import (
    choose_thresholds,
    score_solutions,
    scored_steps,
    step_report,
)


# Steps end in a period, which scores 0. The score of a step is the mean over its words and the period.
TOKEN_SCORES = {tiny.A: 4.0, tiny.B: 2.0, tiny.C: -2.0, tiny.D: -4.0}


def solution(prompt: str, *steps: tuple[str, bool], step_labels="every_token"):
    texts, labels = zip(*steps, strict=True)
    return steps_row(prompt, texts, labels, step_separator=" ", step_labels=step_labels)


ROWS = [
    solution("e ", ("a .", True), ("c .", False), ("d .", False)),  # found exactly at 0
    solution("e ", ("a .", True), ("b .", True)),  # nothing flagged at 0
    solution("f ", ("c .", True), ("d .", False)),  # flagged too early
    solution("f ", ("a b .", True), ("d a .", True)),  # nothing flagged, at the threshold itself
    solution("g ", ("d .", True),),  # flagged
    solution("g ", ("a .", True), ("b .", False)),  # not flagged
]  # fmt: skip


def score_steps(model, tokenizer, rows, aggregation="mean"):
    return scored_steps(*score_solutions(model, tokenizer, rows), aggregation)


@pytest.fixture(scope="module")
def model():
    return tiny.unigram_reward_model(TOKEN_SCORES)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.word_tokenizer()


def test_figures_by_hand(model, tokenizer):
    report = evaluate_steps(model, tokenizer, Dataset.from_list(ROWS), batch_size=2, resamples=50)
    assert (report.solutions, report.wrong_solutions, report.steps, report.wrong_steps) == (6, 3, 12, 4)
    assert report.dropped == {"rows": 6, "kept": 6, "too_long": 0}
    # Flagged are c, d; c, d; d: five, of which three are wrong.
    assert report.step_accuracy.value == pytest.approx(9 / 12)
    assert report.step_f1.value == pytest.approx(2 * 3 / (5 + 4))
    assert report.wrong_accuracy.value == pytest.approx(1 / 3)
    assert report.right_accuracy.value == pytest.approx(2 / 3)
    assert report.first_wrong_f1.value == pytest.approx(2 * (1 / 3) * (2 / 3) / (1 / 3 + 2 / 3))
    scored = score_steps(model, tokenizer, Dataset.from_list(ROWS))
    assert scored.score.tolist() == [2, -1, -2, 2, 1, -1, -2, 2, 0, -2, 2, 1]
    auroc = token_auroc(torch.from_numpy(-scored.score), torch.from_numpy(~scored.right))
    assert report.step_auroc.value == pytest.approx(auroc)


def test_aggregations(model, tokenizer):
    [row] = [ROWS[3]]
    for aggregation, expected in {"mean": [2, 0], "min": [0, -4], "last": [0, 0]}.items():
        scored = score_steps(model, tokenizer, Dataset.from_list([row]), aggregation=aggregation)
        assert scored.score.tolist() == expected


def test_labels_on_the_last_token_read_its_score(tokenizer):
    model = tiny.unigram_reward_model({tiny.A: 4.0, tiny.PERIOD: -3.0})
    rows = [solution("e ", ("a a .", True), ("b a", False), step_labels="last_token")]
    for aggregation in ("mean", "min", "last"):
        scored = score_steps(model, tokenizer, Dataset.from_list(rows), aggregation=aggregation)
        assert scored.score.tolist() == [-3.0, 4.0] and scored.right.tolist() == [True, False]


def test_the_threshold_is_chosen_on_other_rows(model, tokenizer):
    other = [
        solution("h ", ("d .", True), ("d d d d .", False)),
        solution("i ", ("d .", True), ("a .", True)),
    ]
    chosen = choose_thresholds(score_steps(model, tokenizer, Dataset.from_list(other)))
    assert chosen == pytest.approx((-2.6, -2.6))  # between -2 and -3.2
    report = evaluate_steps(
        model, tokenizer, Dataset.from_list(ROWS), threshold_dataset=Dataset.from_list(other), resamples=10
    )
    assert (report.step_threshold, report.first_wrong_threshold) == pytest.approx((-2.6, -2.6))
    assert report.step_f1.value == 0 and report.right_accuracy.value == 1 and report.first_wrong_f1.value == 0
    with pytest.raises(ValueError, match="on right and wrong solutions, but 0 of 1 are wrong"):
        evaluate_steps(model, tokenizer, Dataset.from_list(ROWS), threshold_dataset=Dataset.from_list(other[1:]))


def test_the_bootstrap_draws_problems(model, tokenizer):
    scored = score_steps(model, tokenizer, Dataset.from_list(ROWS))
    assert scored.problem.tolist() == [0, 0, 1, 1, 2, 2]
    report = step_report(scored, resamples=400, level=0.9)
    rng, values = np.random.default_rng(0), []
    for _ in range(400):  # the same draws, of whole problems
        drawn = np.bincount(rng.integers(3, size=3), minlength=3)
        accurate, steps = np.array([5, 3, 1]), np.array([5, 4, 3])
        values.append(drawn @ accurate / (drawn @ steps))
    low, high = np.quantile(values, [0.05, 0.95])
    assert (report.step_accuracy.low, report.step_accuracy.high) == pytest.approx((low, high))


def test_long_rows_are_dropped_and_counted(model, tokenizer):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    report = evaluate_steps(model, tokenizer, stream, max_length=6, resamples=5)
    # The prompt, two words a step and EOS.
    assert report.dropped == {"rows": 6, "kept": 4, "too_long": 2}
    assert "solutions dropped | 2" in report.table() and report.solutions == 4
    with pytest.raises(ValueError, match="Nothing is left of the evaluation data set: 6 are too long, raise `max_l"):
        evaluate_steps(model, tokenizer, Dataset.from_list(ROWS), max_length=3)


def test_the_table_and_the_file(model, tokenizer, tmp_path):
    report = evaluate_steps(model, tokenizer, Dataset.from_list(ROWS[1:2]), resamples=5)
    assert math.isnan(report.first_wrong_f1.value) and math.isnan(report.step_f1.value)
    assert "| F1 of the first wrong step | – |" in str(report)
    report.save(tmp_path / "a" / "report.json")
    assert json.loads((tmp_path / "a" / "report.json").read_text())["right_accuracy"]["value"] == 1


def test_an_adapter(model, tokenizer):
    adapted = ppo_runs.lora(TokenRewardModel.from_backbone(model), modules_to_save=["token_score"])
    rows = Dataset.from_list(ROWS)
    before, after = (score_steps(one, tokenizer, rows).score for one in (model, adapted))
    assert after == pytest.approx(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion_judged": []}, "Row 1 of the evaluation data set: column `completion_judged`: is empty"),
        ({"completion_judged": [[0, 99]]}, r"Row 1 .*: column `completion_judged`: the span \[0, 99\) must lie within"),
        ({"completion_spans": [[3, 4]]}, "Row 1 .*: column `completion_spans`: the span .* is in no judged step"),
        ({"completion": None}, "Row 1 .*: column `completion_judged`: marks characters of `completion`, which the row"),
        ({"prompt": ["e"]}, "Row 1 .*: column `prompt`: must be a text, as `completion` is"),
        ({"completion": "a\ud83d ."}, "Row 1 .*: column `completion`: has half of a character"),
        ({"completion_judged": None}, "Row 1 .*: has no `completion_judged`"),
        ({"chosen": "a ."}, r"Row 1 .*: column `completion`: is there beside \['chosen'\]"),
    ],
)
def test_a_malformed_row_is_named(model, tokenizer, change, message):
    rows = [ROWS[0], {**ROWS[1], **change}]
    with pytest.raises(ValueError, match=message):
        evaluate_steps(model, tokenizer, IterableDataset.from_generator(lambda: iter(rows)))


def test_messages_are_read_as_training_reads_them():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    torch.nn.init.normal_(model.token_score.weight)
    row = steps_row("how?", ["the quick fox.", "the lazy dog."], [True, False])
    row |= {"prompt": [{"role": "user", "content": "how?"}]}
    row |= {"completion": [{"role": "assistant", "content": row["completion"]}]}
    [solution], _ = score_solutions(model, tokenizer, Dataset.from_list([row]))
    assert solution.prompt == "<user>how?<eos><assistant>"
    prepared, _ = prepare_dataset(Dataset.from_list([row]), tokenizer)
    marked = [place for place, edited in enumerate(prepared[0]["rejected_edit_mask"]) if edited]
    [start, end] = solution.steps[1]
    inside = [i for i, (a, b) in enumerate(solution.token_spans) if a < end and b > start]
    assert [solution.places[i] for i in inside] == marked
    with torch.no_grad():
        scores = model(torch.tensor([prepared[0]["rejected_ids"]])).token_scores[0]
    scored = scored_steps([solution], {}, "mean")
    assert scored.score[1] == pytest.approx(float(scores[marked].mean()), abs=1e-6)


def test_a_step_without_a_token_is_named():
    """A tokenizer may drop characters."""
    tokenizer = tiny.tokenizer("wordpiece")
    row = steps_row("", ["the fox", "\x00\x00"], [True, True])
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    with pytest.raises(ValueError, match=r"Row 1: step 1, the characters \[8, 10\), has no token"):
        evaluate_steps(model, tokenizer, Dataset.from_list([solution("", ("a", True)), row]))


def test_bad_arguments(model, tokenizer):
    rows = Dataset.from_list(ROWS)
    with pytest.raises(TypeError, match="must be a TokenRewardModel"):
        evaluate_steps(tiny.causal_lm(), tokenizer, rows)
    with pytest.raises(ValueError, match="`threshold` has no effect with `threshold_dataset`"):
        evaluate_steps(model, tokenizer, rows, threshold=0.0, threshold_dataset=rows)
    with pytest.raises(ValueError, match="`threshold` must be a finite number, but is nan"):
        evaluate_steps(model, tokenizer, rows, threshold=math.nan)
    with pytest.raises(ValueError, match="`aggregation` must be one of"):
        evaluate_steps(model, tokenizer, rows, aggregation="max")
    with pytest.raises(ValueError, match="evaluation data set: it has no rows"):
        evaluate_steps(model, tokenizer, rows.select([]))


def test_solutions_without_a_prompt_are_problems_of_their_own(model, tokenizer):
    rows = [{name: value for name, value in row.items() if name != "prompt"} for row in ROWS]
    assert score_steps(model, tokenizer, Dataset.from_list(rows)).problem.tolist() == [0, 1, 2, 3, 4, 5]
    assert score_steps(
        model, tokenizer, Dataset.from_list([*ROWS[:2], {**ROWS[2], "prompt": ""}])
    ).problem.tolist() == [0, 0, 1]


def test_rows_that_the_model_cannot_read_are_named(model):
    words = tiny.word_tokenizer(words="abcdefghijkl.!")
    with pytest.raises(ValueError, match="Row 1: the tokenizer gives the id 16, but `model` knows 16 tokens"):
        evaluate_steps(model, words, Dataset.from_list([ROWS[0], solution("e ", ("a !", True))]))
    long = solution("e ", ("a " * 300 + ".", True))
    with pytest.raises(ValueError, match="Row 0 has .* tokens, but `model` has 128 positions"):
        evaluate_steps(model, tiny.word_tokenizer(), Dataset.from_list([long]), max_length=1000)
