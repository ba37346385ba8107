"""Several rewards at once: their weighted sum, the worst of an ensemble, and implicit rewards among them."""

import math

import pytest
import torch
from torch import nn

import ppo_runs
import tiny
from ppo_scenario import RAW, logged, prompts, weights
from scorer_cases import TWO_ROWS, batch
from tiny import EOS, A, B, C, D
from trl_tokenreward import FineGrainedPPOConfig, ImplicitReward, read_completions
from trl_tokenreward.ppo.completion_scorer import CompletionScorer


def c_is_good(completions, **kwargs):
    """One float for each completion."""
    return [float(text.count("c")) for text in completions]


def by_token(completion_ids, **kwargs):
    """One float for each token."""
    return [[token / 10 for token in ids] for ids in completion_ids]


def first_model():
    return tiny.unigram_reward_model({C: 1.0, D: -2.0, A: 0.5}, {EOS: 3.0})


def second_model():
    return tiny.unigram_reward_model({C: -1.0, D: 4.0, A: 0.25}, {EOS: -1.0})


def policy():
    return tiny.bigram_lm({token: {EOS: 0.3, C: 0.4, D: 0.2, A: 0.1} for token in range(16)})


def make(scenario, rewards, **settings):
    arguments = {"reward_processing_class": settings.pop("reward_processing_class", None), "reward_model": rewards}
    arguments["value_model"] = None if settings.pop("own_value_model", False) else tiny.unigram_classifier()
    return scenario.make(
        policy=policy(),
        dataset=prompts([A], [B], [C], [D]),
        stop_token="eos",
        arguments=arguments,
        **settings,
    )


def rollout(scenario, rewards, **settings):
    return make(scenario, rewards, **settings).collect_rollout(0)


def scores_of(reward, rollout, **kwargs):
    """What one reward says of the tokens, (B, T), before shaping."""
    scorer = CompletionScorer(reward, tiny.word_tokenizer(), **kwargs)
    rows = [{} for _ in rollout.completion_ids]
    return scorer.raw_scores(rollout.prompts, rollout.completion_ids, rollout.completion_mask, rows).values


def test_a_weighted_sum(scenario):
    rewards = [first_model(), second_model(), by_token, c_is_good]
    weights = [0.5, -1.0, 2.0, 0.25]
    seen = rollout(scenario, rewards, reward_weights=weights)
    parts = [scores_of(reward, seen) for reward in rewards]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(seen.token_level_scores, expected)
    torch.testing.assert_close(seen.raw_token_scores, expected)
    torch.testing.assert_close(seen.raw_scores, expected.sum(1))
    assert parts[3].count_nonzero() > 0  # the terminal one stands on last tokens
    torch.testing.assert_close(parts[3].sum(1), torch.tensor(c_is_good(_texts(seen))))


def _texts(seen):
    tokenizer = tiny.word_tokenizer()
    return [
        tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        for ids, mask in zip(seen.completion_ids, seen.completion_mask, strict=True)
    ]


def test_without_weights_all_count_once(scenario):
    seen = rollout(scenario, [first_model(), by_token])
    expected = scores_of(first_model(), seen) + scores_of(by_token, seen)
    torch.testing.assert_close(seen.token_level_scores, expected)


def test_each_has_its_own_shaping(scenario):
    own = [
        {"token_score_transform": "log_sigmoid", "reward_scale": 0.5, "center_rewards": False},
        {"reward_signal": "sequence_score", "reward_scale": 0.1, "reward_clip": 0.2},
        {"reward_density": "sequence", "center_rewards": True},
    ]
    rewards = [first_model(), second_model(), by_token]
    settings = dict.fromkeys(RAW)
    seen = rollout(scenario, rewards, reward_settings=own, **{**settings, "hold_length": False})
    mask = seen.completion_mask
    first = 0.5 * nn.functional.logsigmoid(scores_of(first_model(), seen)) * mask
    first = first.clamp(-1, 1)  # the default of a model's token scores
    second = (0.1 * scores_of(second_model(), seen, signal="sequence_score")).clamp(-0.2, 0.2)
    third = scores_of(by_token, seen)
    third = (third - third.sum() / mask.sum()) * mask
    last = torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
    third = torch.where(last, third.sum(1, keepdim=True), 0.0)
    torch.testing.assert_close(seen.token_level_scores, first + second + third)


def test_the_worst_of_an_ensemble(scenario):
    models = [first_model(), second_model()]
    shaping = {"token_score_transform": "log_sigmoid", "reward_scale": 0.5, "center_rewards": True, "reward_clip": 1.0}
    seen = rollout(scenario, models, reward_aggregation="min", **shaping)
    mask = seen.completion_mask
    worst = torch.minimum(*(scores_of(model, seen) for model in models))
    assert (worst < scores_of(models[0], seen)).any()
    assert (worst < scores_of(models[1], seen)).any()
    torch.testing.assert_close(seen.raw_token_scores, worst)
    shaped = 0.5 * nn.functional.logsigmoid(worst) * mask
    shaped = ((shaped - shaped.sum() / mask.sum()) * mask).clamp(-1, 1)
    torch.testing.assert_close(seen.token_level_scores, shaped)


def test_the_worst_sequence_score(scenario):
    models = [first_model(), second_model()]
    seen = rollout(scenario, models, reward_aggregation="min", reward_signal="sequence_score")
    totals = [scores_of(model, seen, signal="sequence_score").sum(1) for model in models]
    torch.testing.assert_close(seen.raw_scores, torch.minimum(*totals))


@pytest.mark.parametrize("kind", ["model", "function", "implicit", "sequence_score_coef"])
def test_a_list_of_one_is_the_reward_itself(scenario, kind):
    made = {
        "model": first_model,
        "function": lambda: by_token,
        "implicit": lambda: ImplicitReward(tiny.bigram_lm({A: {C: 1.0}}), tiny.bigram_lm(), 0.1),
        "sequence_score_coef": first_model,
    }[kind]
    settings = dict.fromkeys(RAW)
    if kind == "sequence_score_coef":
        settings["sequence_score_coef"] = 0.5
    outcomes = []
    for wrap in (lambda reward: reward, lambda reward: [reward], lambda reward: (reward,)):
        torch.manual_seed(0)  # what the models do not use of their weights is random
        given = wrap(made())
        trainer = make(scenario, given, max_steps=3, own_value_model=True, **settings)
        trainer.train()
        logs = [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k and k != "eps"}
                for entry in trainer.state.log_history]  # fmt: skip
        outcomes.append((trainer.model.state_dict(), logs))
    for state, logs in outcomes[1:]:
        assert logs == outcomes[0][1]
        assert all(torch.equal(state[name], tensor) for name, tensor in outcomes[0][0].items())
    assert not any(name.startswith("rewards/") for entry in outcomes[0][1] for name in entry)


def test_implicit_rewards_are_a_reward_of_tokens(scenario):
    trained, start = policy(), tiny.bigram_lm()
    seen = rollout(scenario, ImplicitReward(trained, start, 0.5))
    # After any token, the trained model has these probabilities, and the start 1/16 each.
    ratio = {EOS: 0.3 * 16, C: 0.4 * 16, D: 0.2 * 16, A: 0.1 * 16}
    for row, mask in enumerate(seen.completion_mask.bool()):
        expected = [0.5 * math.log(ratio[token]) for token in seen.completion_ids[row][mask].tolist()]
        assert seen.token_level_scores[row][mask].tolist() == pytest.approx(expected, rel=1e-4)
    # The same through text, for a reward model with another tokenizer.
    other = tiny.word_tokenizer(words="labcdefghijk.")
    moved = {t: t + 1 if 3 <= t < 14 else 3 if t == 14 else t for t in range(16)}
    shifted = tiny.bigram_lm(
        {t: {moved[n]: p for n, p in ((EOS, 0.3), (C, 0.4), (D, 0.2), (A, 0.1))} for t in range(16)}
    )
    read = rollout(scenario, ImplicitReward(shifted, tiny.bigram_lm(), 0.5), reward_processing_class=other)
    torch.testing.assert_close(read.token_level_scores, seen.token_level_scores, rtol=1e-4, atol=1e-5)


def test_defaults_of_implicit_rewards(scenario):
    settings = dict.fromkeys(RAW)
    trainer = make(scenario, ImplicitReward(policy(), tiny.bigram_lm(), 0.5), **settings)
    args = trainer.args
    assert (args.token_score_transform, args.reward_scale) == ("none", 1.0)
    assert (args.center_rewards, args.reward_clip, args.hold_length) == (True, 1.0, True)


def test_with_a_teacher_reward_and_penalty_are_the_kl_to_the_teacher(scenario):
    teacher = tiny.bigram_lm({token: {EOS: 0.5, C: 0.2, D: 0.2, A: 0.1} for token in range(16)})
    trainer = scenario.make(
        policy=policy(),
        reward=ImplicitReward(teacher, tiny.bigram_lm(), 0.5),
        ref_model=tiny.bigram_lm(),
        dataset=prompts([A], [B], [C], [D]),
        stop_token="eos",
        kl_coef=0.5,
    )
    seen = trainer.collect_rollout(0)
    of_teacher = {EOS: 0.5, C: 0.2, D: 0.2, A: 0.1}
    for row, mask in enumerate(seen.completion_mask.bool()):
        teacher_logps = torch.tensor([math.log(of_teacher[t]) for t in seen.completion_ids[row][mask].tolist()])
        expected = 0.5 * (teacher_logps - seen.per_token_logps[row][mask])
        torch.testing.assert_close(seen.token_level_rewards[row][mask], expected, rtol=1e-3, atol=1e-4)


def test_each_is_logged_by_name(scenario):
    rewards = [first_model(), first_model(), c_is_good]
    trainer = make(scenario, rewards, max_steps=2, eval_dataset=prompts([A], [B]))
    seen = trainer.collect_rollout(0)
    logs = trainer.rollout_metrics.pop()
    parts = {
        "TokenRewardModel (1)": scores_of(rewards[0], seen),
        "TokenRewardModel (2)": scores_of(rewards[1], seen),
        "c_is_good": scores_of(c_is_good, seen),
    }
    for name, part in parts.items():
        assert logs[f"rewards/{name}/mean"] == pytest.approx(float(part.sum(1).mean()), rel=1e-5)
        assert logs[f"rewards/{name}/std"] == pytest.approx(float(part.sum(1).std()), rel=1e-5)
    metrics = trainer.evaluate()
    means = [metrics[f"eval_rewards/{name}/mean"] for name in parts]
    assert metrics["eval_objective/scores"] == pytest.approx(sum(means), rel=1e-5)
    assert float(trainer.generate_completions()["score"].mean()) == pytest.approx(sum(means), rel=1e-4)


def test_a_whole_training_with_all_that_reads_rewards(scenario):
    rewards = [first_model(), ImplicitReward(policy(), tiny.bigram_lm(), 0.1), by_token, c_is_good]
    trainer = make(
        scenario, rewards, max_steps=4, reward_weights=[1.0, 0.5, 0.1, 0.1], own_value_model=True, log_completions=True
    )
    trainer.train()
    assert trainer.reward_model is rewards
    assert len(logged(trainer, "rewards/ImplicitReward/mean")) == 4
    assert len(logged(trainer, "objective/raw_scores")) == 4  # what the callback for reward hacking reads
    rows = read_completions(trainer.args.output_dir)
    assert len(rows.rows) > 0


def test_the_value_model_is_of_the_first_model_with_a_sequence_head(scenario):
    model = second_model()
    with torch.no_grad():
        next(model.model.parameters()).mul_(1.5)  # the backbones of these models are alike
    value_model = make(scenario, [by_token, model, first_model()], own_value_model=True).value_model
    assert torch.equal(weights(value_model.model), weights(model.model))


@pytest.mark.parametrize(
    ("rewards", "settings", "error", "message"),
    [
        ([], {}, ValueError, "`reward_model` is required"),
        ([by_token, 3], {}, TypeError, r"`reward_model\[1\]`: `reward_model` must be a model or a function, got int"),
        ([by_token, nn.Linear(2, 2)], {}, TypeError, r"`reward_model\[1\]`: .* is a Linear"),
        ([first_model, tiny.unigram_reward_model], {}, ValueError, r"`reward_model\[1\]`: .*token head is untrained"),
        ([by_token, c_is_good], {"reward_weights": [1.0]}, ValueError, "`reward_weights` has 1 entries, .* is 2"),
        ([by_token], {"reward_settings": [{}, {}]}, ValueError, "`reward_settings` has 2 entries, .* is 1"),
        ([first_model], {"reward_aggregation": "min"}, ValueError, "has no effect on one reward"),
        ([first_model, by_token], {"reward_aggregation": "min"}, ValueError, r"reward_model\[1\]` is no reward model"),
        (
            [first_model, lambda: tiny.unigram_classifier()],
            {"reward_aggregation": "min"},
            ValueError,
            r"reward_model\[1\]` gives another kind of scores than `reward_model\[0\]`",
        ),
        (
            [first_model, second_model],
            {"reward_aggregation": "min", "reward_density": "potential"},
            ValueError,
            r"reward_model\[0\]` gives differences of potentials",
        ),
        ([first_model, second_model], {"sequence_score_coef": 0.5}, ValueError, "list the model twice"),
        (
            [by_token, first_model],
            {"reward_settings": [{"reward_signal": "token_scores"}, {}]},
            ValueError,
            r"`reward_model\[0\]`: `reward_signal` has no effect on a reward function",
        ),
        (
            [by_token, first_model],
            {"reward_processing_class": tiny.word_tokenizer(words="labcdefghijk.")},
            ValueError,
            "2 rewards in `reward_model`, but 1 in `reward_processing_class`",
        ),
        (
            lambda: ImplicitReward(tiny.bigram_lm(), tiny.bigram_lm()),
            {"reward_signal": "sequence_score"},
            ValueError,
            "needs a sequence score; ImplicitReward has none",
        ),
    ],
)
def test_what_is_refused_before_training(scenario, rewards, settings, error, message):
    models = (first_model, second_model, tiny.unigram_reward_model)
    if isinstance(rewards, list):
        rewards = [r() if r in models or getattr(r, "__name__", "") == "<lambda>" else r for r in rewards]
    else:
        rewards = rewards()
    with pytest.raises(error, match=message):
        make(scenario, rewards, **settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"reward_aggregation": "max"}, ValueError, "`reward_aggregation` must be one of"),
        ({"reward_aggregation": "min", "reward_weights": [1, 1]}, ValueError, "`reward_weights` does not go with"),
        ({"reward_aggregation": "min", "reward_settings": [{}, {}]}, ValueError, "`reward_settings` does not go with"),
        ({"reward_aggregation": "min", "sequence_score_coef": 1.0}, ValueError, "`sequence_score_coef` does not go"),
        ({"reward_weights": [1.0, math.nan]}, ValueError, "`reward_weights` must be a list of finite numbers"),
        ({"reward_weights": 1.0}, TypeError, "`reward_weights` must be a list, but is 1.0"),
        ({"reward_weights": [1.0, "a"]}, ValueError, "`reward_weights` must be a list of finite numbers"),
        ({"reward_settings": [{}, "reward_scale"]}, TypeError, r"`reward_settings\[1\]` must be a dictionary"),
        ({"reward_settings": [{}, {"hold_length": True}]}, ValueError, r"`reward_settings\[1\]` has 'hold_length'"),
        ({"reward_settings": [{"reward_clip": -1.0}]}, ValueError, r"`reward_settings\[0\]`: `reward_clip` must be"),
        ({"reward_settings": [{"reward_scale": math.nan}]}, ValueError, r"`reward_settings\[0\]`: .* is NaN"),
        (
            {"reward_scale": 0.5, "reward_settings": [{"reward_scale": 1.0}, {"reward_scale": 2.0}]},
            ValueError,
            "`reward_scale` has no effect, since every entry of `reward_settings` has its own",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        FineGrainedPPOConfig(str(tmp_path), use_cpu=True, **settings)


def test_a_reward_may_not_read_the_policy_itself(scenario):
    model = policy()
    reward = ImplicitReward(model, tiny.bigram_lm())
    with pytest.raises(ValueError, match=r"`reward_model\[1\]` reads `model` itself"):
        scenario.make(policy=model, reward=[by_token, reward])


def test_a_number_that_is_nan_is_blamed_on_its_reward(scenario):
    broken = tiny.bigram_lm()
    broken.lm_head.weight.data[:] = math.nan
    with pytest.raises(ValueError, match=r"a score of `reward_model\[1\]` is nan"):
        rollout(scenario, [by_token, ImplicitReward(broken, tiny.bigram_lm())])


def test_a_completion_without_a_prompt_to_predict_its_first_token():
    reward = ImplicitReward(policy(), tiny.bigram_lm(), 1.0)
    scorer = CompletionScorer(reward, tiny.word_tokenizer())
    given, ids, mask, rows = batch(([A], [C, EOS]))
    assert scorer.raw_scores(given, ids, mask, rows).values[0].tolist() == pytest.approx(
        [math.log(0.4 * 16), math.log(0.3 * 16)], rel=1e-4
    )
    assert scorer.kind == "log_ratios"
    assert scorer.raw_scores(*TWO_ROWS).values.shape == TWO_ROWS[1].shape


def test_several_rewards_resume_exactly(tmp_path):
    def trainer():
        return ppo_runs.make("several", tmp_path, max_steps=8, save_steps=4, eval_strategy="no")

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
