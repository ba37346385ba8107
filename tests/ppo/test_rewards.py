"""Rewards: a part of the tests of trainer."""

import math

import pytest
import torch
from datasets import Dataset

import tiny
from ppo_scenario import RAW, logged, next_token_probabilities, of_prompt, prompts
from tiny import EOS, PERIOD, A, B, C, D, E
from trl_tokenreward.nn.masked import masked_whiten
from trl_tokenreward.ppo.functional import hold_mean_length


TWO_SENTENCES = {A: {C: 1.0}, C: {PERIOD: 1.0}, PERIOD: {D: 1.0}, D: {EOS: 1.0}}


def scores_of(scenario, reward, **settings):
    trainer = scenario.make(
        policy=tiny.bigram_lm(TWO_SENTENCES), reward=reward, stop_token="eos", response_length=6, **settings
    )
    rollout = trainer.collect_rollout(0)
    assert rollout.completion_ids[0].tolist() == [C, PERIOD, D, EOS]
    return rollout.token_level_scores[0].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 2, -4, 0.5]),
        ({"reward_density": "token"}, [1, 2, -4, 0.5]),
        ({"reward_density": "sentence"}, [0, 3, 0, -3.5]),
        ({"reward_density": "sequence"}, [0, 0, 0, -0.5]),
        ({"token_score_transform": "log_sigmoid"}, [-0.313262, -0.126928, -4.018150, -0.474077]),
        ({"token_score_transform": "log_sigmoid", "reward_scale": 2.0, "reward_clip": 1.0}, [-0.626523, -0.253856, -1, -0.948154]),
        ({"sequence_score_coef": 0.5}, [1, 2, -4, 4]),
        ({"sequence_score_coef": 0.5, "reward_scale": 2.0, "reward_clip": 3.0}, [2, 3, -3, 2.5]),
        ({"sequence_score_coef": 0.5, "center_rewards": True}, [1.125, 2.125, -3.875, 0.625]),
        ({"reward_signal": "sequence_score"}, [0, 0, 0, 7]),
        # Prefix scores 5, 3, 9, 7: their differences, from 0 on.
        ({"reward_density": "potential"}, [5, -2, 6, -2]),
        ({"reward_signal": "sequence_score", "reward_density": "potential"}, [5, -2, 6, -2]),
        ({"reward_signal": "sequence_score", "reward_density": "sequence"}, [0, 0, 0, 7]),
        ({"reward_scale": 2.0}, [2, 4, -8, 1]),
        ({"center_rewards": True}, [1.125, 2.125, -3.875, 0.625]),  # the mean is -0.125
        ({"reward_clip": 1.5}, [1, 1.5, -1.5, 0.5]),
        ({"reward_density": "potential", "reward_clip": 4.0}, [5, -2, 6, -5]),
        ({"reward_signal": "sequence_score", "reward_scale": 0.5}, [0, 0, 0, 3.5]),
        ({"reward_signal": "sequence_score", "center_rewards": True}, [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_reward_settings_by_hand(scenario, settings, expected):
    reward = tiny.unigram_reward_model(
        {C: 1.0, PERIOD: 2.0, D: -4.0, EOS: 0.5}, {C: 5.0, PERIOD: 3.0, D: 9.0, EOS: 7.0}
    )
    assert scores_of(scenario, reward, **settings) == pytest.approx(expected, abs=1e-5)


def test_the_defaults_are_those_for_token_scores_of_a_model(scenario):
    left = dict.fromkeys(RAW)
    trainer = scenario.make(reward=tiny.unigram_reward_model({C: 1.0}), stop_token="eos", **left)
    assert (trainer.args.token_score_transform, trainer.args.reward_scale) == ("log_sigmoid", 0.2)
    assert trainer.args.center_rewards and trainer.args.hold_length and trainer.args.reward_clip == 1.0
    for reward in (tiny.unigram_classifier(), lambda completions, **kwargs: [1.0] * len(completions)):
        args = scenario.make(reward=reward, stop_token="eos", **left).args
        assert (args.token_score_transform, args.reward_scale, args.center_rewards) == ("none", 1.0, False)
        assert not args.hold_length and args.reward_clip == math.inf


def test_log_probabilities_are_of_tokens_alone(scenario):
    with pytest.raises(ValueError, match="`token_score_transform` has no effect on a sequence score"):
        scenario.make(reward=tiny.unigram_classifier(), token_score_transform="log_sigmoid")


def test_a_sequence_term_needs_both_scores(scenario):
    for reward in (tiny.unigram_classifier(), lambda completions, **kwargs: [1.0] * len(completions)):
        with pytest.raises(ValueError, match="`sequence_score_coef` adds the sequence score"):
            scenario.make(reward=reward, sequence_score_coef=0.5)


def test_the_kl_coefficient_is_adapted(scenario):
    """log 2 nats in each update, which is more than the target: the coefficient grows by a fifth each time."""
    settings = {
        "policy": tiny.bigram_lm({A: {C: 0.5, D: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        "ref_model": tiny.bigram_lm({A: {C: 0.25, D: 0.25, E: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}),
        "stop_token": "eos",
        "kl_coef": 0.5,
        "learning_rate": 0.0,
        "total_episodes": 12,
    }
    trainer = scenario.train(kl_target=0.5, **settings)
    assert logged(trainer, "objective/kl_coef") == pytest.approx([0.5, 0.6, 0.72])
    assert logged(trainer, "objective/non_score_reward") == pytest.approx(
        [-coef * math.log(2) for coef in (0.5, 0.6, 0.72)], abs=1e-5
    )
    trainer.train()  # from the beginning
    assert logged(trainer, "objective/kl_coef")[-3:] == pytest.approx([0.5, 0.6, 0.72])
    for target in (0.8, None):
        assert logged(scenario.train(kl_target=target, **settings), "objective/kl_coef") == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("per_token", [1.0, -1.0])
@pytest.mark.slow
def test_the_length_is_held_against_a_reward_that_pays_for_it(scenario, per_token):
    """A reward above all for length, either way: without a bonus completions become full, or end at once. The two words
    are not worth the same, and that is still learned."""

    def reward(completion_ids, **kwargs):
        return [[per_token + 0.5 * (token == C) for token in ids] for ids in completion_ids]

    lengths = {}
    for hold in (False, True):
        trainer = scenario.train(
            policy=tiny.bigram_lm(dict.fromkeys((A, C, D), {C: 0.4, D: 0.4, EOS: 0.2})),
            reward=reward,
            stop_token="eos",
            response_length=8,
            hold_length=hold,
            learning_rate=0.005,
            optim="adamw_torch",
            per_device_train_batch_size=64,
            dataset=prompts(*[[A]] * 64),
            total_episodes=64 * 32,
        )
        lengths[hold] = logged(trainer, "completions/mean_length")
    start = lengths[True][0]
    assert lengths[False][0] == start
    assert lengths[False][-1] > 1.6 * start if per_token > 0 else lengths[False][-1] < 0.6 * start
    assert 1 / 1.4 < sum(lengths[True][-20:]) / 20 / start < 1.4
    assert next_token_probabilities(trainer.policy_model, C)[C] > 0.5
    bonuses = logged(trainer, "objective/length_bonus")
    assert sum(bonuses[-10:]) / 10 == pytest.approx(-per_token - 0.4, abs=0.5)


@pytest.mark.parametrize("target", [None, 3.0])
def test_the_length_to_hold_is_that_of_the_first_update_or_the_one_asked_for(scenario, target):
    settings = {"stop_token": "eos", "policy": tiny.bigram_lm()}
    plain = scenario.make(hold_length=False, **settings).collect_rollout(0)
    trainer = scenario.make(hold_length=True, target_length=target, **settings)
    rollout = trainer.collect_rollout(0)
    mask = rollout.completion_mask
    length = float(mask.sum(1).float().mean())
    # The returns, which the value model learns, are those of the rewards alone.
    torch.testing.assert_close(rollout.returns, plain.returns)
    torch.testing.assert_close(rollout.token_level_rewards, plain.token_level_rewards)
    raw = rollout.returns - rollout.values * mask
    held, bonus = hold_mean_length(raw, mask, target or length)
    assert bonus != 0
    assert trainer.rollout_metrics.pop()["objective/length_bonus"] == pytest.approx(bonus, rel=1e-4)
    torch.testing.assert_close(rollout.advantages, masked_whiten(held, mask), atol=1e-4, rtol=1e-4)
    assert trainer.adaptive.target_length == target
    assert trainer.adaptive.after(rollout, trainer.args).target_length == (target or length)


def test_centring_is_over_the_whole_batch(scenario):
    # A -> C C (2 tokens at 1), B -> D D (2 tokens at -3): the batch's mean is -1, though each row's own is not.
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}, C: {C: 1.0}, B: {D: 1.0}, D: {D: 1.0}}),
        reward=tiny.unigram_reward_model({C: 1.0, D: -3.0}),
        dataset=prompts([A], [B]),
        per_device_train_batch_size=2,
        response_length=2,
        center_rewards=True,
    )
    rollout = trainer.collect_rollout(0)
    assert of_prompt(rollout, A).token_level_scores.tolist() == pytest.approx([2, 2])
    assert of_prompt(rollout, B).token_level_scores.tolist() == pytest.approx([-2, -2])


def test_a_dense_function_says_what_each_token_is_worth(scenario):
    def reward(completion_ids, **kwargs):
        return [[1.0, 2.0, -4.0, 0.5] for _ in completion_ids]

    assert scores_of(scenario, reward) == [1, 2, -4, 0.5]
    assert scores_of(scenario, reward, reward_density="sentence") == [0, 3, 0, -3.5]


def test_a_function_sees_prompts_completions_and_columns(scenario):
    calls = []

    def reward(**kwargs):
        calls.append(kwargs)
        return [1.5] * len(kwargs["completions"])

    dataset = Dataset.from_dict({"prompt": ["a"], "answer": [42]})
    assert scores_of(scenario, reward, dataset=dataset) == [0, 0, 0, 1.5]
    assert calls[0] == {
        "prompts": ["a"] * 4,
        "completions": ["c . d"] * 4,
        "completion_ids": [[C, PERIOD, D, EOS]] * 4,
        "answer": [42] * 4,
    }


def test_a_function_sees_messages_where_the_prompts_are_messages(scenario):
    calls = []

    def reward(**kwargs):
        calls.append(kwargs)
        return [1.5] * len(kwargs["completions"])

    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]]})
    scores_of(scenario, reward, dataset=dataset, tokenizer=tokenizer)
    assert calls[0]["prompts"][0] == [{"role": "user", "content": "a"}]
    assert calls[0]["completions"][0] == [{"role": "assistant", "content": "c . d"}]


def test_the_alarm_for_rewards_that_grow_with_length(scenario):
    settings = {
        "policy": tiny.bigram_lm({token: {C: 0.6, EOS: 0.4} for token in range(16)}),
        "stop_token": "eos",
        "response_length": 8,
        "per_device_train_batch_size": 8,
    }
    name = "objective/score_length_correlation"

    def per_token(completion_ids, **kwargs):
        return [[1.0] * len(ids) for ids in completion_ids]

    def shorter_is_better(completion_ids, **kwargs):
        return [-2.0 * len(ids) for ids in completion_ids]

    assert logged(scenario.train(reward=per_token, **settings), name)[0] == pytest.approx(1, abs=1e-5)
    assert logged(scenario.train(reward=shorter_is_better, **settings), name)[0] == pytest.approx(-1, abs=1e-5)
