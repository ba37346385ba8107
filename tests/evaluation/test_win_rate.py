import copy
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import ppo_runs
import tiny
from trl_tokenreward import RewardModelJudge, ScoringJudge, TokenRewardModel, WinRateCallback, evaluate_win_rate
from trl_tokenreward.evaluation.sampler import AnswerSampler
from trl_tokenreward.utils.statistics import Estimate, pairwise_outcomes


EOS, A, B, C = 1, 3, 4, 5
LONGER = ScoringJudge(lambda prompts, answers: [float(len(answer)) for answer in answers])


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
    assert [c.answer for c in result.comparisons] == [" b b b b"] * 2  # as it goes on from the prompt
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
    assert seen == [(["a", "a b", "b", "c"], [" b b"] * 4, given)]
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


def test_a_win_rate_on_messages_is_saved(tmp_path):
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": 1}}] * 2)
    result = evaluate_win_rate(ender(1e-9), ["b", ""], tokenizer, rows, LONGER, response_length=2)
    result.save(tmp_path)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [[{"role": "user", "content": "a"}]] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": "a"}, TypeError, "`prompts` must be a data set, or a list"),
        ({"prompts": ["a", 3]}, TypeError, "`prompts` must be a data set, or a list"),
        ({"policy": "a name"}, TypeError, "`policy` must be a model, but is 'a name': load it with"),
        ({"tokenizer": "a name"}, TypeError, "`tokenizer` must be a tokenizer, but is 'a name': load it with"),
        (
            {"prompts": Dataset.from_dict({"input_ids": [[3], []]})},
            ValueError,
            "Row 1 of the evaluation data set, column `input_ids`: has no tokens",
        ),
        ({"prompts": ["a", "b " * 125]}, ValueError, "Row 1 of the evaluation prompts has 125 tokens.*128 positions"),
        ({"stop_token_id": "period"}, ValueError, "`stop_token_id` must be 'eos', `None` or the id"),
        ({"stop_token_id": 16}, ValueError, "one of the tokenizer's 16 tokens, got 16"),
        ({"stop_token_id": True}, ValueError, "`stop_token_id` must be 'eos', `None` or the id"),
        ({"judge": "a name"}, TypeError, "`judge` must be a judge, or a function that is one, but is a str"),
        ({"reference": ["b"]}, ValueError, "`reference` has 1 answers, but there are 2 prompts"),
        ({"reference": "b"}, TypeError, "`reference` must be a model or a list of texts"),
        ({"judge": lambda *_: [1.0]}, ValueError, "`judge` must return 2 numbers from 0 to 1"),
        ({"judge": lambda *_: [2.0, 0.0]}, ValueError, "`judge` must return 2 numbers from 0 to 1"),
        ({"judge": lambda *_: [math.nan] * 2}, ValueError, "no verdict on any pair"),
        ({"response_length": 0}, ValueError, "`response_length` must be at least 1"),
        ({"temperature": math.nan}, ValueError, "`temperature` must be a finite number"),
        ({"level": 95}, ValueError, "level must lie between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {
        "policy": ender(0.5),
        "reference": ender(0.5),
        "tokenizer": tiny.word_tokenizer(),
        "prompts": ["a", "b"],
        "judge": LONGER,
        "response_length": 4,
        **arguments,
    }
    with pytest.raises(error, match=message):
        evaluate_win_rate(**arguments)


def test_a_policy_on_apples_gpu():
    policy = ender(0.3)
    policy.parameters = lambda: iter([SimpleNamespace(device=torch.device("mps"))])
    with pytest.raises(ValueError, match="which Apple's GPU .* move a model that is evaluated to the CPU"):
        evaluate_win_rate(policy, ender(0.3), tiny.word_tokenizer(), ["a"], LONGER, response_length=8)


def test_errors_in_models_come_before_the_answers():
    reference = ender(0.5)
    reference.forward = lambda *args, **kwargs: pytest.fail("the reference has answered")
    with pytest.raises(TypeError, match="`policy` must be a model"):
        evaluate_win_rate("a name", reference, tiny.word_tokenizer(), ["a"], LONGER)


def test_the_model_under_an_adapter_is_a_reference_without_it():
    """PEFT puts the adapter into the model."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = tiny.causal_lm(vocab_size=16, initializer_range=0.5)
    start, policy = copy.deepcopy(base), peft.get_peft_model(base, lora)
    given = {"tokenizer": tiny.word_tokenizer(), "prompts": ["a", "b c"] * 4, "judge": LONGER, "response_length": 6}
    result = evaluate_win_rate(policy, base, **given)
    assert result == evaluate_win_rate(policy, start, **given) and result.kl != 0
    assert policy.active_adapters == ["default"]
    for models in ((policy, peft.PeftModel(base, lora, "other")), (base, policy)):
        with pytest.raises(ValueError, match="are one model, on which all its adapters act"):
            evaluate_win_rate(*models, **given)


def test_a_deep_copy_that_runs_the_other_model_is_refused():
    policy = ender(0.5)
    policy.forward = policy.forward.__get__(policy)

    def remember(model, forward):
        model.forward = lambda *args, **kwargs: forward(*args, **kwargs)

    remember(policy, policy.forward)
    with pytest.raises(ValueError, match="`reference` is a deep copy of a"):
        evaluate_win_rate(policy, copy.deepcopy(policy), tiny.word_tokenizer(), ["a"], LONGER)


def test_an_answer_keeps_the_blank_between_it_and_its_prompt():
    """Tokenizers such as Llama 2's drop it where an answer is decoded by itself."""
    tokenizer, seen = tiny.tokenizer("metaspace"), []
    model = tiny.causal_lm(vocab_size=len(tokenizer), initializer_range=0.5)

    def judge(prompts, a, b):
        seen.extend(zip(prompts, a, strict=True))
        return [0.5] * len(prompts)

    prompts = ["the quick", "lazy dog"] * 4
    answers = AnswerSampler(tokenizer, prompts, response_length=4, stop_token_id=None)(model)
    evaluate_win_rate(model, model, tokenizer, prompts, judge, response_length=4, stop_token_id=None)
    assert any(answer.startswith(" ") for _, answer in seen)
    for (prompt, text), answer in zip(seen, answers, strict=True):
        ids = [*tokenizer(prompt)["input_ids"], *answer.ids]
        assert prompt + text == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_chat_template_gets_its_arguments_where_a_row_has_none():
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ ' b' if loud else ' c' }}{% endfor %}"
    message = [{"role": "user", "content": "a"}]
    rows = Dataset.from_dict({"prompt": [message] * 2, "chat_template_kwargs": [None, {"loud": False}]})
    for prompts, expected in ((rows, [[A, B], [A, C]]), ([message], [[A, B]])):
        sampler = AnswerSampler(tokenizer, prompts, chat_template_kwargs={"loud": True})
        assert sampler._ids == expected
        assert sampler.prompts[0].template == {"chat_template_kwargs": {"loud": True}}


def test_a_reward_model_judges_a_win_rate():
    reward_model = TokenRewardModel.from_backbone(tiny.sequence_classifier())
    policy, reference = (tiny.causal_lm(seed=seed) for seed in (1, 2))
    judge = RewardModelJudge(reward_model, tiny.tokenizer())
    result = evaluate_win_rate(policy, reference, tiny.tokenizer(), ["Human: how?"] * 8, judge, response_length=6)
    a, b = (
        judge.scores(["Human: how?"] * 8, [getattr(c, name) for c in result.comparisons])
        for name in ("answer", "reference_answer")
    )
    assert [c.outcome for c in result.comparisons] == pairwise_outcomes(a, b) and 0 < result.win_rate.value < 1


# --- the callback ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def test_the_policy_answers_in_the_trainers_precision_and_the_judge_judges_in_its_own(tmp_path):
    seen = {"policy": set(), "judge": set()}

    def judge(prompts, a, b):
        seen["judge"].add(torch.is_autocast_enabled("cpu"))
        return LONGER(prompts, a, b)

    model = tiny.causal_lm(vocab_size=16)
    model.register_forward_hook(lambda *_: seen["policy"].add(torch.is_autocast_enabled("cpu")))
    arguments = TrainingArguments(
        tmp_path, max_steps=1, bf16=True, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    rows = [{"input_ids": [A, B, C], "labels": [A, B, C]}] * 8
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tiny.word_tokenizer())
    trainer.add_callback(WinRateCallback(trainer, judge, ["a"], response_length=4))
    trainer.train()
    # In training, the model's own forward pass has the autocast, which the hook comes after.
    assert seen == {"policy": {False, True}, "judge": {False}}


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
