"""Several rewards in GRPO: settings of each, the worst of an ensemble, and implicit rewards."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import tiny
from grpo_runs import kept_batches
from tiny import EOS, A, B, C, D
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer, ImplicitReward, read_completions


pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")

COMPLETIONS = [[A, B, C, EOS], [B, B, EOS], [C, D, A, B, EOS], [D, EOS]]
FIRST, SECOND = {A: 1.0, B: -2.0, C: 0.5, EOS: 0.25}, {A: -1.0, B: 3.0, D: -0.5}
PROBABILITIES = {A: 0.4, B: 0.1, C: 0.2, D: 0.1, EOS: 0.2}


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny.causal_lm(vocab_size=16, initializer_range=0.5).save_pretrained(folder)
    return folder


def rollout(prompts, trainer):
    return {
        "prompt_ids": [[C]] * len(prompts),
        "completion_ids": COMPLETIONS[: len(prompts)],
        "logprobs": [[-1.0] * len(ids) for ids in COMPLETIONS[: len(prompts)]],
    }


@pytest.fixture
def make(tmp_path, policy_folder):
    def make_trainer(reward_funcs, model=None, **kwargs):
        settings = {
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "save_strategy": "no",
            "beta": 0.0,
            **kwargs,
        }
        return FineGrainedGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(policy_folder) if model is None else model,
            reward_funcs,
            FineGrainedGRPOConfig(**settings),
            Dataset.from_dict({"prompt": ["a b", "c"] * 4}),
            processing_class=tiny.word_tokenizer(),
            rollout_func=rollout,
        )

    return make_trainer


def outcome(trainer):
    """The advantages of each rollout, and what was logged."""
    kept = kept_batches(trainer)
    trainer.train()
    assert len(kept) == 2
    return [batch["advantages"] for batch in kept], trainer.state.log_history


def by_token(scores):
    def function(completion_ids, **kwargs):
        return [[scores.get(token, 0.0) for token in ids] for ids in completion_ids]

    return function


def length(completions, **kwargs):
    return [len(text) / 10 for text in completions]


@pytest.mark.parametrize("estimator", ["process", "leave_one_out"])
def test_the_worst_of_an_ensemble(make, estimator):
    worst = {token: min(FIRST.get(token, 0.0), SECOND.get(token, 0.0)) for token in range(16)}
    ensemble = [tiny.unigram_reward_model(FIRST), tiny.unigram_reward_model(SECOND)]
    kept, logs = outcome(make(ensemble, reward_aggregation="min", advantage_estimator=estimator, log_completions=True))
    expected, expected_logs = outcome(make(tiny.unigram_reward_model(worst), advantage_estimator=estimator))
    for ours, theirs in zip(kept, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0.1
    for name in ("reward", "reward_std", "frac_reward_zero_std"):
        assert logs[0][name] == pytest.approx(expected_logs[0][name], rel=1e-5)
    totals = [sum(scores.get(token, 0.0) for ids in COMPLETIONS for token in ids) / 4 for scores in (FIRST, SECOND)]
    for number, mean in enumerate(totals, start=1):
        assert logs[0][f"rewards/TokenRewardModel ({number})/mean"] == pytest.approx(mean, rel=1e-5)


def test_the_completion_log_has_the_rewards_together(make, tmp_path):
    weights = [0.5, 2.0]
    make([by_token(FIRST), by_token(SECOND)], reward_weights=weights, log_completions=True).train()
    [row, *_] = read_completions(tmp_path).rows
    names = {"a": A, "b": B, "c": C, "d": D, "<eos>": EOS}
    expected = [
        sum(w * scores.get(names[token.strip()], 0.0) for w, scores in zip(weights, (FIRST, SECOND), strict=True))
        for token in row.texts[0].tokens
    ]
    assert row.texts[0].series["score"] == pytest.approx(expected)


def test_each_has_its_own_shaping(make):
    own = [{"reward_scale": 2.0, "reward_clip": 3.0}, {"reward_density": "sequence"}, {}]

    def first(completion_ids, **kwargs):
        return [[min(max(2 * FIRST.get(token, 0.0), -3.0), 3.0) for token in ids] for ids in completion_ids]

    def second(completion_ids, **kwargs):
        return [[0.0] * (len(ids) - 1) + [sum(SECOND.get(token, 0.0) for token in ids)] for ids in completion_ids]

    kwargs = {"reward_weights": [1.0, 0.5, 2.0]}
    kept, _ = outcome(make([by_token(FIRST), by_token(SECOND), length], reward_settings=own, **kwargs))
    expected, _ = outcome(make([first, second, length], **kwargs))
    for ours, theirs in zip(kept, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_implicit_rewards(make):
    trained = tiny.bigram_lm(dict.fromkeys(range(16), PROBABILITIES))
    reward = ImplicitReward(trained, tiny.bigram_lm(), 0.5)
    ratios = {token: 0.5 * math.log(16 * p) for token, p in PROBABILITIES.items()}
    kept, logs = outcome(make(reward))
    # A function's values are used as they are; implicit rewards are centred and bounded, and hold the length.
    expected, _ = outcome(make(by_token(ratios), center_rewards=True, reward_clip=1.0, hold_length=True))
    for ours, theirs in zip(kept, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    mean = sum(ratios[token] for ids in COMPLETIONS for token in ids) / 4
    assert logs[0]["rewards/ImplicitReward/mean"] == pytest.approx(mean, rel=1e-4)


def with_sequence_head(model):
    torch.nn.init.ones_(model.score.weight)
    return model


@pytest.mark.parametrize(
    ("rewards", "settings", "error", "message"),
    [
        (lambda: [length, 5], {}, TypeError, r"`reward_funcs\[1\]`: It must be a model, .* got 5"),
        (lambda: [length], {"reward_settings": [{}, {}]}, ValueError, "`reward_settings` has 2 entries, .* is 1"),
        (lambda: [tiny.unigram_reward_model(FIRST)], {"reward_aggregation": "min"}, ValueError, "no effect on one"),
        (
            lambda: [tiny.unigram_reward_model(FIRST), by_token(FIRST)],
            {"reward_aggregation": "min"},
            ValueError,
            r"`reward_funcs\[1\]` is no reward model that scores tokens",
        ),
        (
            lambda: [tiny.unigram_reward_model(FIRST), ImplicitReward(tiny.bigram_lm(), tiny.bigram_lm())],
            {"reward_aggregation": "min"},
            ValueError,
            r"`reward_funcs\[1\]` gives another kind of scores",
        ),
        (
            lambda: [by_token(FIRST), tiny.unigram_reward_model(FIRST)],
            {"reward_settings": [{"reward_signal": "token_scores"}, {}]},
            ValueError,
            r"`reward_funcs\[0\]`: `reward_signal` has no effect on a reward function",
        ),
        (
            lambda: [by_token(FIRST), with_sequence_head(tiny.unigram_reward_model(FIRST))],
            {"reward_settings": [{}, {"reward_signal": "sequence_score", "reward_scale": 2.0}]},
            ValueError,
            r"`reward_settings\[1\]` has no effect",
        ),
    ],
)
def test_what_is_refused_before_training(make, rewards, settings, error, message):
    with pytest.raises(error, match=message):
        make(rewards(), **settings)


def test_settings_of_a_function_that_gives_one_reward_have_no_effect(make):
    trainer = make([by_token(FIRST), length], reward_settings=[{}, {"reward_scale": 2.0}])
    with pytest.raises(ValueError, match=r"`reward_settings\[1\]` has no effect: `reward_funcs\[1\]` gives one reward"):
        trainer.train()


def test_a_reward_may_not_read_the_policy_itself(make):
    model = tiny.bigram_lm()
    with pytest.raises(ValueError, match=r"`reward_funcs\[1\]` reads `model` itself"):
        make([length, ImplicitReward(model, tiny.bigram_lm())], model=model)
