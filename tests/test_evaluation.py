import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import ppo_runs
import tiny
from trl_tokenreward import (
    RewardModelJudge,
    ScoringJudge,
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
    WinRateCallback,
    align_edits,
    evaluate_token_rewards,
    evaluate_win_rate,
)
from trl_tokenreward.data import prepare_dataset
from trl_tokenreward.evaluation import (
    Estimate,
    _auroc_of_ranks,
    bootstrap_interval,
    edit_kinds,
    length_controlled_win_rate,
    pairwise_outcomes,
    win_rate,
)
from trl_tokenreward.reward_losses import token_auroc


EOS, A, B, C = 1, 3, 4, 5
LONGER = ScoringJudge(lambda prompts, answers: [float(len(answer)) for answer in answers])


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
    # x is +-tanh(1). A model with as many parameters as lengths fits both rates: .8 where longer, .4 where shorter. At x = 0
    # its logit is the mean of theirs.
    outcomes = [1, 1, 1, 1, 0] + [1, 1, 0, 0, 0]
    differences = [7] * 5 + [-7] * 5
    logit = (math.log(0.8 / 0.2) + math.log(0.4 / 0.6)) / 2
    assert length_controlled_win_rate(outcomes, differences) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    # The unit of the lengths says nothing, and the two sides add up to one.
    assert length_controlled_win_rate(outcomes, [d / 7 for d in differences]) == pytest.approx(0.62020, abs=1e-5)
    swapped = length_controlled_win_rate([1 - y for y in outcomes], [-d for d in differences])
    assert swapped == pytest.approx(1 - 0.62020, abs=1e-5)


def by_search(y, x, counts):
    """The win rate at x = 0 of the likeliest logistic regression, found by a search that knows nothing of derivatives."""
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


# --- win rates -------------------------------------------------------------------------------------------------------


def ender(p_eos):
    """A policy that goes on with `b` after `a` and `b`, and ends with probability `p_eos` at each token."""
    row = {EOS: p_eos, B: 1 - p_eos} if p_eos < 1 else {EOS: 1.0}
    return tiny.bigram_lm({A: row, B: row, C: row})


def test_equal_policies_tie_at_every_prompt():
    result = evaluate_win_rate(
        ender(0.3), ender(0.3), tiny.word_tokenizer(), ["a", "b a", "a"] * 4, LONGER, response_length=8, batch_size=5
    )
    assert result.win_rate == result.length_controlled == Estimate(0.5, 0.5, 0.5)
    assert (result.wins, result.ties, result.losses, result.failed, result.kl) == (0, 12, 0, 0, 0.0)
    assert len({c.answer for c in result.comparisons}) > 2 and all(
        c.answer == c.reference_answer for c in result.comparisons
    )


def test_figures_of_policies_that_are_known_by_hand(tmp_path):
    # The policy never ends: b b b b. The reference ends at once.
    policy, reference = ender(1e-9), ender(1 - 1e-9)
    result = evaluate_win_rate(policy, reference, tiny.word_tokenizer(), ["a", "a b"], LONGER, response_length=4)
    assert [c.answer for c in result.comparisons] == ["b b b b"] * 2
    assert result.win_rate == result.length_controlled == Estimate(1.0, 1.0, 1.0)
    assert (result.length, result.reference_length, result.ended, result.reference_ended) == (4.0, 1.0, 0.0, 1.0)
    assert result.kl == pytest.approx(-4 * math.log(1e-9), rel=1e-3)
    result.save(tmp_path / "one" / "two")
    figures = json.loads((tmp_path / "one" / "two" / "figures.json").read_text())
    assert figures["win_rate"] == {"value": 1.0, "low": 1.0, "high": 1.0} and figures["wins"] == 2
    rows = [json.loads(line) for line in (tmp_path / "one" / "two" / "answers.jsonl").read_text().splitlines()]
    assert rows[1]["prompt"] == "a b" and rows[1]["reference_answer"] == "" and rows[1]["length"] == 4
    assert "| win rate | 1.000 (1.000 to 1.000) |" in str(result)


def test_kl_is_the_mean_log_ratio_at_the_sampling_temperature():
    # At temperature 2 the odds are square roots: .25 / .75 becomes 1 / sqrt(3).
    policy, reference = ender(0.25), ender(0.5)
    result = evaluate_win_rate(
        policy, reference, tiny.word_tokenizer(), ["a"] * 6, LONGER, response_length=5, temperature=2.0, seed=3
    )
    p = 1 / (1 + 3**0.5)
    for c in result.comparisons:
        going_on = c.length - c.ended
        expected = going_on * math.log((1 - p) / 0.5) + c.ended * math.log(p / 0.5)
        assert c.kl == pytest.approx(expected, abs=1e-4)
    assert result.kl == pytest.approx(np.mean([c.kl for c in result.comparisons]))


def test_given_answers_are_a_reference_and_pairs_without_verdict_are_counted():
    seen = []

    def judge(prompts, a, b):
        seen.append((prompts, a, b))
        return [1.0, math.nan, 0.0, 0.75]

    rows = Dataset.from_dict({"input_ids": [[A], [A, B], [B], [C]]})
    given = ["a b", "c", "", "b"]
    result = evaluate_win_rate(ender(1e-9), given, tiny.word_tokenizer(), rows, judge, response_length=2)
    assert seen == [(["a", "a b", "b", "c"], ["b b"] * 4, given)]
    assert (result.wins, result.ties, result.losses, result.failed) == (2, 0, 1, 1)
    assert result.win_rate.value == pytest.approx(1.75 / 3)
    assert [c.reference_length for c in result.comparisons] == [3, 2, 1, 2]  # EOS counts
    assert (
        result.kl is None and result.reference_ended is None and "| KL to the reference (nats) | – |" in result.table()
    )


def test_sampling_is_seeded_and_messages_are_taken():
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompts = [[{"role": "user", "content": "a"}]] * 6

    def answers(p_eos=0.3, **kwargs):
        seen = []

        def judge(prompts, a, b):
            seen.extend(a)
            assert prompts[0][0]["content"] == "a"
            return [0.5] * len(prompts)

        evaluate_win_rate(ender(p_eos), [""] * 6, tokenizer, prompts, judge, response_length=6, **kwargs)
        return seen

    assert answers() == answers(batch_size=2) != answers(seed=1)
    assert all(answer == "b b b b b b" for answer in answers(temperature=0.0))
    assert answers(p_eos=1e-9, stop_token_id=B) == ["b"] * 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": "a"}, TypeError, "`prompts` must be a data set, or a list"),
        ({"prompts": ["a", 3]}, TypeError, "`prompts` must be a data set, or a list"),
        (
            {"prompts": Dataset.from_dict({"input_ids": [[3], []]})},
            ValueError,
            "Row 1 of the evaluation prompts is empty",
        ),
        ({"prompts": ["a", "b " * 125]}, ValueError, "Row 1 of the evaluation prompts has 125 tokens.*128 positions"),
        ({"reference": ["b"]}, ValueError, "`reference` has 1 answers, but there are 2 prompts"),
        ({"reference": "b"}, TypeError, "`reference` must be a model or a list of texts"),
        ({"judge": lambda *_: [1.0]}, ValueError, "`judge` must return 2 numbers from 0 to 1"),
        ({"judge": lambda *_: [2.0, 0.0]}, ValueError, "`judge` must return 2 numbers from 0 to 1"),
        ({"judge": lambda *_: [math.nan] * 2}, ValueError, "no verdict on any pair"),
        ({"response_length": 0}, ValueError, "`response_length` and `batch_size` must be at least 1"),
        ({"level": 95}, ValueError, "level must lie between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {
        "policy": ender(0.5),
        "reference": ender(0.5),
        "processing_class": tiny.word_tokenizer(),
        "prompts": ["a", "b"],
        "judge": LONGER,
        "response_length": 4,
        **arguments,
    }
    with pytest.raises(error, match=message):
        evaluate_win_rate(**arguments)


# --- the callback ----------------------------------------------------------------------------------------------------


def test_training_with_the_callback_is_the_same_to_the_bit(tmp_path):
    def judge(prompts, a, b):
        # A judge with no manners: it draws from every source of random numbers that a training run may use.
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        modes.append((trainer.model.training, trainer.model.policy.training))
        return LONGER(prompts, a, b)

    modes, outcomes = [], []
    for name in ("without", "with"):
        trainer = ppo_runs.make("terminal", tmp_path / name, max_steps=8, eval_strategy="no", save_strategy="no")
        if name == "with":
            trainer.add_callback(WinRateCallback(trainer, judge, ppo_runs.prompts(5, seed=1), response_length=6))
        trainer.train()
        outcomes.append((ppo_runs.outcome(trainer)[0], torch.get_rng_state(), random.getstate(), np.random.rand()))  # noqa: NPY002
    (tensors, *states), (others, *other_states) = outcomes
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert torch.equal(states[0], other_states[0]) and states[1:] == other_states[1:]
    assert modes == [(True, True)] * 2  # restored before the judge is asked
    logs = [entry for entry in trainer.state.log_history if "eval_win_rate" in entry]
    assert [entry["step"] for entry in logs] == [4, 8]
    names = ("win_rate", "win_rate_low", "win_rate_high", "win_rate_length_controlled", "kl", "completion_length")
    assert all(f"eval_{name}" in entry for entry in logs for name in names)


def test_the_callback_measures_what_evaluate_win_rate_does(tmp_path):
    trainer = ppo_runs.make("terminal", tmp_path, max_steps=8, eval_strategy="no", save_strategy="no", seed=5)
    start = copy.deepcopy(trainer.policy_model)
    prompts = ppo_runs.prompts(5, seed=1)
    trainer.add_callback(WinRateCallback(trainer, LONGER, prompts, every=2))
    trainer.train()
    result = evaluate_win_rate(
        trainer.policy_model, start, trainer.processing_class, prompts, LONGER, response_length=8, batch_size=4, seed=5
    )
    [log] = [entry for entry in trainer.state.log_history if "eval_win_rate" in entry]
    assert log["step"] == 8
    assert log["eval_win_rate"] == result.win_rate.value and log["eval_win_rate_high"] == result.win_rate.high
    assert log["eval_kl"] == result.kl > 0 and log["eval_completion_length"] == result.length
    result.save(tmp_path / "again")
    for name in ("figures.json", "answers.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "win_rate" / "step-8" / name).read_text()
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        WinRateCallback(trainer, LONGER, prompts, every=0)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="these models are sharded"):
        WinRateCallback(trainer, LONGER, prompts)


def test_the_reference_of_an_adapter_is_the_policy_without_it(tmp_path):
    trainer = ppo_runs.make("peft", tmp_path, max_steps=4, eval_strategy="no", save_strategy="no")
    base = copy.deepcopy(trainer.policy_model).merge_and_unload()  # the adapter begins at 0
    judged = []

    def judge(prompts, a, b):
        judged.append(b)
        return [0.5] * len(prompts)

    prompts = ppo_runs.prompts(5, seed=1)
    trainer.add_callback(WinRateCallback(trainer, judge, prompts))
    trainer.train()
    result = evaluate_win_rate(
        trainer.policy_model, base, trainer.processing_class, prompts, judge, response_length=8, batch_size=4, seed=42
    )
    assert judged[0] == judged[1]
    [log] = [entry for entry in trainer.state.log_history if "eval_win_rate" in entry]
    assert log["eval_kl"] == pytest.approx(result.kl, abs=1e-5) and result.kl != 0


def test_the_callback_on_a_trainer_of_transformers(tmp_path):
    model = tiny.causal_lm(vocab_size=16, attention_dropout=0.5)
    start = copy.deepcopy(model)
    arguments = TrainingArguments(
        tmp_path, max_steps=3, learning_rate=0.1, report_to="none", use_cpu=True, save_steps=2, disable_tqdm=True
    )
    rows = [{"input_ids": [A, B, C], "labels": [A, B, C]}] * 8
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tiny.word_tokenizer())
    trainer.add_callback(WinRateCallback(trainer, LONGER, ["a", "b"], every=2, response_length=4))
    trainer.train()
    [log] = [entry for entry in trainer.state.log_history if "eval_win_rate" in entry]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    result = evaluate_win_rate(trained, start, tiny.word_tokenizer(), ["a", "b"], LONGER, response_length=4)
    assert log["step"] == 2 and log["eval_kl"] == pytest.approx(result.kl, rel=1e-4) and abs(result.kl) > 0.01
    with pytest.raises(ValueError, match="pass it as `reference`"):
        resumed = Trainer(model, arguments, train_dataset=rows, processing_class=tiny.word_tokenizer())
        resumed.add_callback(WinRateCallback(resumed, LONGER, ["a"], response_length=4))
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# --- token rewards ---------------------------------------------------------------------------------------------------

WORDS = ["terrific", "lousy", "good", "lazy", "quick", "standard"]
PAIRS = [
    {"prompt": "Human: how was it?", "chosen": f" This movie was {one}.", "rejected": f" This movie was so {other}."}
    for i, one in enumerate(WORDS)
    for other in WORDS[:i]
] + [
    {"prompt": "Human: how?", "chosen": " I would watch it.", "rejected": " I would watch."},
    {"prompt": "Human: how?", "chosen": " mix the flour", "rejected": " mix the the flour"},
    {"prompt": "Human: how?", "chosen": " the quick brown fox", "rejected": " The quick fox"},
]  # 18 pairs


@pytest.fixture(scope="module")
def reward_model():
    model = TokenRewardModel.from_backbone(tiny.causal_lm())
    torch.nn.init.normal_(model.token_score.weight)
    return model


@pytest.fixture(scope="module")
def report(reward_model):
    return evaluate_token_rewards(reward_model, tiny.tokenizer(), Dataset.from_list(PAIRS), batch_size=6, resamples=200)


@pytest.mark.parametrize("use_anchors", [False, True])
def test_figures_are_those_of_the_trainer(reward_model, tmp_path, use_anchors):
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "max_edit_ratio": 0.6, "max_length": 27}
    trainer = TokenRewardTrainer(
        copy.deepcopy(reward_model),
        TokenRewardConfig(tmp_path, per_device_eval_batch_size=4, use_anchors=use_anchors, **settings),
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny.tokenizer(),
    )
    metrics = trainer.evaluate()
    report = evaluate_token_rewards(
        reward_model,
        tiny.tokenizer(),
        Dataset.from_list(PAIRS).to_iterable_dataset() if use_anchors else Dataset.from_list(PAIRS),
        batch_size=4,
        max_length=27,
        max_edit_ratio=0.6,
        use_anchors=use_anchors,
        resamples=20,
    )
    assert report.token_accuracy.value == metrics["eval_token_accuracy"] not in (0.0, 0.5, 1.0)
    assert report.token_auroc.value == metrics["eval_token_auroc"]
    assert report.left_out == trainer.left_out["eval"] and report.rows == report.left_out["kept"] < len(PAIRS)
    # Prepared rows are taken as they are. The trainer's accuracy is a mean over batches, so these have one size.
    rows = trainer.eval_dataset.select(range(report.rows // 4 * 4))
    report = evaluate_token_rewards(reward_model, tiny.tokenizer(), rows, batch_size=4, resamples=20)
    assert report.sequence_accuracy.value == trainer.evaluate(rows)["eval_accuracy"] not in (0.0, 1.0)


def test_figures_by_brute_force(report, reward_model):
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tiny.tokenizer())
    tokens = []  # of the rejected sides: score, wrong, relative place, length
    edited = []  # of both: probability, edited in
    for row in rows:
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                scores = reward_model(torch.tensor([row[f"{side}_ids"]])).token_scores[0].tolist()
            inside = [i for i, real in enumerate(row[f"{side}_completion_mask"]) if real]
            for place, i in enumerate(inside):
                wrong = row[f"{side}_edit_mask"][i]
                if side == "rejected":
                    tokens.append((scores[i], wrong, place / len(inside), len(inside)))
                if wrong:
                    edited.append((1 / (1 + math.exp(-scores[i])), side == "chosen"))

    def auroc(part):
        wrong, right = ([score for score, label, *_ in part if label == kind] for kind in (1, 0))
        pairs = [(a < b) + 0.5 * (a == b) for a in wrong for b in right]
        return sum(pairs) / len(pairs)

    assert report.token_auroc.value == pytest.approx(auroc(tokens), abs=2e-3)
    for i, group in enumerate(report.by_position):
        part = [t for t in tokens if i / 5 <= t[2] + 1e-9 < (i + 1) / 5]
        assert (group.tokens, group.edited) == (len(part), sum(t[1] for t in part))
        assert group.mean_score == pytest.approx(np.mean([t[0] for t in part]), abs=1e-4)
    assert sum(group.edited for group in report.by_length) == sum(t[1] for t in tokens)
    for group in report.by_length:
        low, high = (int(part) for part in group.name.removesuffix(" tokens").split(" to "))
        part = [t for t in tokens if low <= t[3] <= high]
        assert group.tokens == len(part) and group.auroc == pytest.approx(auroc(part), abs=2e-2)
    assert len(report.by_length) > 1

    error = 0
    for i, reliability in enumerate(report.reliability):
        part = [e for e in edited if i / 10 <= e[0] < (i + 1) / 10]
        assert reliability.tokens == len(part)
        error += abs(sum(p - label for p, label in part)) / len(edited)
    assert report.calibration_error == pytest.approx(error, abs=1e-4) and error > 0.01


def test_kinds_of_edits_are_those_of_the_alignment(report):
    tokenizer = tiny.tokenizer()
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tokenizer)
    seen = {"insert": 0, "delete": 0, "replace": 0}
    for raw, row in zip(PAIRS, rows, strict=True):
        alignment = align_edits(raw["rejected"], raw["chosen"], tokenizer)
        kinds = edit_kinds(row)
        expected = {side: [""] * len(kinds[side]) for side in kinds}
        for operation in alignment.operations:
            for side, (start, end) in (
                ("rejected", operation.original_tokens),
                ("chosen", operation.edited_tokens),
            ):
                expected[side][start:end] = [operation.kind] * (end - start)
                seen[operation.kind] += (end - start) * (side == "chosen" or operation.kind == "delete")
        assert {side: kinds[side].tolist() for side in kinds} == expected
    assert all(seen.values()) and report.rows_without_kind == 0
    insert, delete, _ = report.by_kind
    assert (insert.edited, delete.edited) == (seen["insert"], seen["delete"])


def test_rows_whose_sides_do_not_match_have_no_kind(reward_model):
    rows = [{**PAIRS[0], "rejected_spans": [[0, 5]]}, {**PAIRS[1], "rejected_spans": [[0, 5]]}]
    report = evaluate_token_rewards(reward_model, tiny.tokenizer(), Dataset.from_list(rows), resamples=10)
    assert report.rows_without_kind == 2 and [group.edited for group in report.by_kind] == [0, 0, 0]
    assert report.token_auroc.value == report.token_auroc.value and math.isnan(report.by_kind[0].auroc)


def test_weighted_auroc_is_that_of_repeated_tokens():
    rng = np.random.default_rng(0)
    scores, labels, counts = rng.integers(0, 6, 30), rng.integers(0, 2, 30).astype(bool), rng.integers(0, 4, 30)
    _, rank = np.unique(scores, return_inverse=True)
    repeated = [torch.from_numpy(np.repeat(values, counts)) for values in (scores, labels)]
    assert _auroc_of_ranks(rank, labels, counts) == pytest.approx(token_auroc(*repeated), abs=1e-12)
    assert math.isnan(_auroc_of_ranks(rank, labels, counts * labels))


def test_intervals_are_of_rows(report, reward_model):
    for estimate in (report.sequence_accuracy, report.token_accuracy, report.token_auroc):
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    # The same samples of rows, row by row.
    rows, _ = prepare_dataset(Dataset.from_list(PAIRS), tiny.tokenizer())
    tokens = []
    for row in rows:
        with torch.no_grad():
            scores = reward_model(torch.tensor([row["rejected_ids"]])).token_scores[0]
        inside, wrong = (torch.tensor(row[f"rejected_{name}_mask"]).bool() for name in ("completion", "edit"))
        tokens.append((-scores[inside], wrong[inside]))
    rng = np.random.default_rng(0)
    samples = [[tokens[i] for i in rng.integers(len(rows), size=len(rows))] for _ in range(200)]
    aurocs = [token_auroc(*map(torch.cat, zip(*sample, strict=True))) for sample in samples]
    low, high = np.quantile(aurocs, [0.025, 0.975])
    assert (report.token_auroc.low, report.token_auroc.high) == pytest.approx((low, high), abs=2e-3)


def test_a_report_is_written(report, tmp_path):
    table = report.table()
    for line in ("| sequence accuracy | 0.", "| kind | tokens | edited | AUROC | mean score |", "| 20 to 40 % |"):
        assert line in table
    lines = table.splitlines()
    for head, rule in zip(lines, lines[1:], strict=False):
        assert not rule.startswith("| ---") or head.count("|") == rule.count("|")
    report.save(tmp_path / "folder" / "report.json")
    saved = json.loads((tmp_path / "folder" / "report.json").read_text())
    assert saved["token_auroc"]["value"] == report.token_auroc.value and len(saved["reliability"]) == 10
    assert None in [b["mean_probability"] for b in saved["reliability"]]  # a bin with nothing in it


def test_token_reports_refuse_what_they_cannot_measure(reward_model):
    rows = Dataset.from_list(PAIRS)
    with pytest.raises(TypeError, match="`model` must be a TokenRewardModel"):
        evaluate_token_rewards(tiny.sequence_classifier(), tiny.tokenizer(), rows)
    with pytest.raises(ValueError, match="`num_bins` must be at least 1"):
        evaluate_token_rewards(reward_model, tiny.tokenizer(), rows, num_bins=0)
    for data in (rows, rows.to_iterable_dataset()):
        with pytest.raises(ValueError, match="Nothing is left of the evaluation data set.*raise `max_length`"):
            evaluate_token_rewards(reward_model, tiny.tokenizer(), data, max_length=3)


def test_a_reward_model_judges_a_win_rate(reward_model):
    policy, reference = (tiny.causal_lm(seed=seed) for seed in (1, 2))
    judge = RewardModelJudge(reward_model, tiny.tokenizer())
    result = evaluate_win_rate(policy, reference, tiny.tokenizer(), ["Human: how?"] * 8, judge, response_length=6)
    a, b = (
        judge.scores(["Human: how?"] * 8, [getattr(c, name) for c in result.comparisons])
        for name in ("answer", "reference_answer")
    )
    assert [c.outcome for c in result.comparisons] == pairwise_outcomes(a, b) and 0 < result.win_rate.value < 1
