"""Trl defects: a part of the tests of trainer."""

import copy
import math
import re

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

import tiny
from ppo_scenario import attentive_policy, logged, next_token_probabilities, prompts, training_forwards, weights
from tiny import EOS, PAD, PERIOD, A, B, C, D
from trl_tokenreward import FineGrainedPPOTrainer
from trl_tokenreward._trl import TRL_HAS_PPO, PPOTrainer


def ours_and_trls(right, wrong):
    """Run the test on both trainers; `expected` is what each of them must show."""
    return pytest.mark.parametrize(
        ("trainer_class", "expected"),
        [
            pytest.param(FineGrainedPPOTrainer, right, id="ours"),
            pytest.param(
                PPOTrainer,
                wrong,
                id="TRL",
                marks=pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer"),
            ),
        ],
    )


@ours_and_trls(right=[2, 4, 8], wrong=[2, 2, 2])
def test_mini_batches_are_optimizer_steps_under_gradient_accumulation(
    scenario, optimizer_steps, trainer_class, expected
):
    taken = []
    for num_mini_batches in (1, 2, 4):
        optimizer_steps.clear()
        scenario.train(
            trainer_class,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            num_ppo_epochs=2,
            num_mini_batches=num_mini_batches,
        )
        taken.append(len(optimizer_steps))
    assert taken == expected


@ours_and_trls(right=4, wrong=16)
def test_a_data_set_of_one_batch(scenario, optimizer_steps, trainer_class, expected):
    scenario.train(
        trainer_class,
        dataset=prompts([A], [B], [C], [D]),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        num_ppo_epochs=4,
    )
    assert len(optimizer_steps) == expected


@ours_and_trls(right=True, wrong=False)
def test_max_grad_norm(scenario, trainer_class, expected):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    before = torch.cat([weights(policy), weights(value)])
    scenario.train(trainer_class, policy=policy, value=value, max_grad_norm=1e-4, learning_rate=1.0)
    moved = (torch.cat([weights(policy), weights(value)]) - before).norm()
    assert moved > 0
    assert bool(moved <= 1.01e-4) == expected


@ours_and_trls(right=(2, 2), wrong=(1, 1))
def test_gradient_checkpointing_runs_every_layer_twice(scenario, trainer_class, expected):
    policy, value = tiny.bigram_lm(), tiny.unigram_classifier()
    passes = [training_forwards(model.model.layers[0].input_layernorm, lambda *_: 1) for model in (policy, value)]
    scenario.train(trainer_class, policy=policy, value=value, gradient_checkpointing=True)
    assert tuple(map(len, passes)) == expected


@ours_and_trls(right={torch.bfloat16}, wrong={torch.float32})
def test_bf16_is_mixed_precision(scenario, trainer_class, expected):
    policy = tiny.bigram_lm()
    dtypes = training_forwards(policy.model.layers[0].mlp.up_proj, lambda inputs, output: output.dtype)
    scenario.train(trainer_class, policy=policy, bf16=True)
    assert set(dtypes) == expected
    assert policy.dtype == torch.float32


@ours_and_trls(right=2, wrong=4)
def test_logging_steps(scenario, trainer_class, expected):
    trainer = scenario.train(trainer_class, total_episodes=16, logging_steps=2)
    assert len(logged(trainer, "objective/kl")) == expected


def outcome(scenario, *args, **kwargs):
    """Train with pad = eos; what becomes of the numbers?"""
    policy = tiny.bigram_lm({A: {EOS: 1.0}, B: {C: 0.5, D: 0.5}, C: {EOS: 1.0}, D: {EOS: 1.0}}, pad_token_id=None)
    try:
        trainer = scenario.train(
            *args, policy=policy, tokenizer=tiny.word_tokenizer("<eos>"), stop_token="eos", **kwargs
        )
    except ValueError as error:
        return str(error)[:27]
    numbers = [*weights(policy), *logged(trainer, "loss/policy_avg")]
    return "finite" if all(math.isfinite(number) for number in numbers) else "NaN"


@ours_and_trls(right="finite", wrong="The sum of the mask is zero")
def test_all_responses_are_eos(scenario, trainer_class, expected):
    assert outcome(scenario, trainer_class, dataset=prompts(*[[A]] * 12)) == expected


@ours_and_trls(right="finite", wrong="NaN")
def test_a_micro_batch_of_responses_that_are_eos(scenario, trainer_class, expected):
    rows = [[A], [B]] * 3
    batches = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "total_episodes": 6}
    assert outcome(scenario, trainer_class, dataset=prompts(*rows * 2), **batches) == expected


@ours_and_trls(right="finite", wrong="NaN")
def test_a_single_token_to_train_on(scenario, trainer_class, expected):
    # TRL's PPO finds no token in three of the responses and one in the fourth; its variance is 0 / 0.
    assert outcome(scenario, trainer_class, dataset=prompts([A], [A], [A], [B])) == expected


@ours_and_trls(right=True, wrong=False)
def test_the_end_of_a_response_is_learned_where_pad_is_eos(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({A: {A: 0.7, EOS: 0.3}}, pad_token_id=None)
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0, A: -1.0}),
        tokenizer=tiny.word_tokenizer("<eos>"),
        stop_token="eos",
        per_device_train_batch_size=8,
        total_episodes=24,
        learning_rate=0.2,
    )
    assert bool(next_token_probabilities(policy, A)[EOS] > 0.5) == expected


@ours_and_trls(right=True, wrong=False)
def test_pad_may_be_sampled(scenario, trainer_class, expected):
    # Every token has probability 1/16, so eight tokens have 8 log 16 nats, whatever they are.
    settings = {"per_device_train_batch_size": 16, "response_length": 8}
    trainer = scenario.train(trainer_class, dataset=prompts(*[[A]] * 16), **settings)
    assert (logged(trainer, "objective/entropy")[0] == pytest.approx(8 * math.log(16))) == expected


@ours_and_trls(right=True, wrong=False)
def test_the_score_is_paid_for_the_last_real_token(scenario, trainer_class, expected):
    # With lam = 0 and a value model that says 0, an action is reinforced by the score on its own slot alone. Responses
    # to A end, and earn 1; those to B do not, and earn 0. Where the score lands after the end, nothing is ever
    # reinforced.
    policy = tiny.bigram_lm({A: {C: 1.0}, C: {EOS: 0.5, D: 0.5}, D: {EOS: 1.0}, B: {B: 1.0}})
    before = next_token_probabilities(policy, C)[EOS]
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0}),
        dataset=prompts(*[[A], [A], [B], [A], [A], [A], [B], [A]] * 2),
        stop_token="eos",
        per_device_train_batch_size=8,
        lam=0.0,
        vf_coef=0.0,
    )
    assert bool(next_token_probabilities(policy, C)[EOS] > before + 1e-3) == expected


@ours_and_trls(right=True, wrong=False)
def test_a_truncated_response_goes_on_with_its_value(scenario, trainer_class, expected):
    # All states are worth 5 and nothing is ever earned, so no action is better than another, the last one included.
    policy = tiny.bigram_lm()
    before = weights(policy)
    scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier(),
        value=tiny.unigram_classifier(dict.fromkeys(range(16), 5.0)),
        **({"bootstrap_truncated": True} if trainer_class is FineGrainedPPOTrainer else {}),
    )
    assert torch.allclose(weights(policy), before, rtol=0, atol=1e-6) == expected


def test_bootstrap_is_for_truncated_responses_only(scenario):
    policy = tiny.bigram_lm({A: {C: 1.0}, C: {EOS: 1.0}, B: {D: 1.0}, D: {D: 1.0}})
    settings = {
        "policy": policy,
        "reward": tiny.unigram_classifier({EOS: 1.0}),
        "value": tiny.unigram_classifier({A: 0.5, B: 0.5, C: 0.25, D: 2.0, EOS: 9.0}),
        "dataset": prompts([A], [B]),
        "per_device_train_batch_size": 2,
        "stop_token": "eos",
        "response_length": 3,
        "lam": 1.0,
    }
    returns = {}
    for bootstrap in (False, True):
        rollout = scenario.make(**settings, bootstrap_truncated=bootstrap).collect_rollout(0)
        returns[bootstrap] = dict(zip(rollout.prompt_ids[:, 0].tolist(), rollout.returns.tolist(), strict=True))
    assert returns[False] == {A: pytest.approx([1, 1, 0]), B: pytest.approx([0, 0, 0])}
    assert returns[True] == {A: pytest.approx([1, 1, 0]), B: pytest.approx([2, 2, 2])}


@ours_and_trls(right=[0.0], wrong=[-3.0])
def test_missing_eos_penalty_looks_at_the_stop_token_in_use(scenario, trainer_class, expected):
    trainer = scenario.train(
        trainer_class,
        policy=tiny.bigram_lm({A: {PERIOD: 1.0}}),
        reward=tiny.unigram_classifier(),
        stop_token_id=PERIOD,
        missing_eos_penalty=3.0,
    )
    assert logged(trainer, "objective/scores") == expected


def test_missing_eos_penalty_is_subtracted_on_the_last_token(scenario):
    policy = tiny.bigram_lm({A: {PERIOD: 1.0}, B: {EOS: 1.0}, EOS: {C: 1.0}, C: {C: 1.0}})
    trainer = scenario.make(
        policy=policy,
        reward=tiny.unigram_classifier({C: 0.5}),
        dataset=prompts([A], [B]),
        per_device_train_batch_size=2,
        stop_token_id=PERIOD,
        missing_eos_penalty=3.0,
        response_length=3,
    )
    rollout = trainer.collect_rollout(0)
    scores = dict(zip(rollout.prompt_ids[:, 0].tolist(), rollout.token_level_scores.tolist(), strict=True))
    assert scores == {A: pytest.approx([0, 0, 0]), B: pytest.approx([0, 0, -2.5])}


@ours_and_trls(right=[-2.0], wrong=[-2.0])
def test_missing_eos_penalty_without_a_stop_token_is_for_completions_without_eos(scenario, trainer_class, expected):
    # All completions have three tokens. Those after A have their EOS in the middle, those after B none.
    policy = tiny.bigram_lm({A: {D: 1.0}, D: {EOS: 1.0}, EOS: {C: 1.0}, B: {C: 1.0}, C: {C: 1.0}})
    trainer = scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({C: 1.0}),
        dataset=prompts([A], [B], [B], [B]),
        missing_eos_penalty=4.0,
        response_length=3,
    )
    assert logged(trainer, "objective/scores") == [pytest.approx(expected[0])]  # 1 - 4 * 3 / 4


@ours_and_trls(right=[4.0], wrong=[6.0])
def test_eos_is_counted_once_without_a_pad_token_in_the_generation_config(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({A: {EOS: 1.0}, B: {C: 1.0}, C: {EOS: 1.0}})
    policy.generation_config.pad_token_id = None
    trainer = scenario.train(
        trainer_class, policy=policy, dataset=prompts(*[[A]] * 2, *[[B]] * 2), stop_token="eos", seed=1
    )
    assert logged(trainer, "val/num_eos_tokens") == expected


@ours_and_trls(right=True, wrong=False)
def test_policy_and_reference_run_without_dropout(scenario, trainer_class, expected):
    policy, reference = attentive_policy(attention_dropout=0.5), attentive_policy(attention_dropout=0.5)
    trainer = scenario.train(trainer_class, policy=policy.train(), ref_model=reference.train())
    assert (logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-5)) == expected
    # Nor are there two answers to one question afterwards, while the policy is trained.
    policy.train()
    ids = torch.tensor([[A, B, C, D]])
    assert torch.equal(policy(ids).logits, policy(ids).logits) == expected


@pytest.mark.parametrize("setting", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}])
@ours_and_trls(right=True, wrong=False)
def test_the_generation_config_has_no_say_in_log_probabilities(scenario, setting, trainer_class, expected):
    policy = attentive_policy()
    policy.generation_config.update(**setting)
    trainer = scenario.train(trainer_class, policy=policy)
    assert (logged(trainer, "val/ratio")[0] == pytest.approx(1, abs=1e-5)) == expected
    assert (logged(trainer, "objective/kl")[0] == pytest.approx(0, abs=1e-5)) == expected


@ours_and_trls(right=True, wrong=False)
def test_the_value_model_is_saved(scenario, tmp_path, trainer_class, expected):
    value = tiny.unigram_classifier()
    trainer = scenario.train(trainer_class, value=value)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), weights(trainer.policy_model))
    folders = {path.parent for path in (tmp_path / "saved").rglob("*.safetensors")}
    assert (folders == {tmp_path / "saved", tmp_path / "saved" / "value_model"}) == expected
    if expected:
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
        assert torch.equal(weights(saved), weights(value))


def outcome_of(train, *args, **kwargs):
    try:
        train(*args, **kwargs)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        return type(error).__name__
    return "trained"


@ours_and_trls(right="trained", wrong="ValueError")
def test_prompts_may_be_texts(scenario, trainer_class, expected):
    dataset = Dataset.from_dict({"prompt": ["a", "b c", "d e f", "g"]})
    assert outcome_of(scenario.train, trainer_class, dataset=dataset) == expected


@ours_and_trls(right="trained", wrong="ValueError")
def test_prompts_may_be_messages(scenario, trainer_class, expected):
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": word}] for word in "abcd"]})
    assert outcome_of(scenario.train, trainer_class, dataset=dataset, tokenizer=tokenizer) == expected


@ours_and_trls(right="trained", wrong="TypeError")
def test_prompts_may_be_a_stream(scenario, trainer_class, expected):
    assert outcome_of(scenario.train, trainer_class, dataset=prompts(*[[A]] * 12).to_iterable_dataset()) == expected


def with_adapter(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("role", ["reward", "value"])
@ours_and_trls(right="trained", wrong="ValueError")
def test_reward_and_value_model_may_have_adapters(scenario, role, trainer_class, expected):
    # TRL's PPO then runs the whole classifier, which has no use for a batch without a pad token in its configuration.
    torch.manual_seed(0)
    models = {role: with_adapter(tiny.unigram_classifier(pad_token_id=None))}
    assert outcome_of(scenario.train, trainer_class, **models) == expected


@ours_and_trls(right=True, wrong=False)
def test_statistics_are_means_over_real_tokens(scenario, trainer_class, expected):
    policy = tiny.bigram_lm({token: {EOS: 0.4, C: 0.3, D: 0.3} for token in range(16)})
    seen = training_forwards(policy.base_model, lambda inputs, _: (inputs, copy.deepcopy(policy.state_dict())))
    trainer = scenario.train(
        trainer_class,
        policy=policy,
        reward=tiny.unigram_classifier({EOS: 1.0}),
        stop_token="eos",
        num_ppo_epochs=2,
        logging_steps=2 if trainer_class is FineGrainedPPOTrainer else 1,
        response_length=3,
    )
    (_, old), (inputs, new) = seen
    ids = inputs["input_ids"]
    mask = ids[:, 1:] != PAD  # which is never sampled here
    assert not mask.all()  # else there would be nothing to tell apart
    logps = []
    for state in (old, new):
        policy.load_state_dict(state)
        with torch.no_grad():
            logps.append(policy(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)[mask])
    difference = logps[1] - logps[0]
    # The first of the two passes has not moved yet.
    approxkl, ratio = (0.5 * difference.square()).mean() / 2, (1 + difference.exp().mean()) / 2
    assert approxkl > 1e-3
    assert (logged(trainer, "policy/approxkl_avg")[0] == pytest.approx(float(approxkl), rel=1e-3)) == expected
    assert (logged(trainer, "val/ratio")[0] == pytest.approx(float(ratio), rel=1e-5)) == expected


@ours_and_trls(right=True, wrong=False)
def test_evaluation_samples_at_the_training_temperature(scenario, capsys, trainer_class, expected):
    # The table shows five responses of eight tokens; D is drawn four times in ten at temperature 1, never at 0.01.
    policy = tiny.bigram_lm({token: {C: 0.6, D: 0.4} for token in range(16)})
    trainer = scenario.make(trainer_class, policy=policy, eval_dataset=prompts(*[[A]] * 8), response_length=8)
    trainer.generate_completions()
    assert bool(re.search(r"\bd\b", capsys.readouterr().out)) == expected


@ours_and_trls(right=[2.0], wrong=[-1.0])
def test_the_reward_model_may_have_another_tokenizer(scenario, trainer_class, expected):
    reward_tokenizer = tiny.word_tokenizer(words="lkjihgfedcba.")
    c = reward_tokenizer.convert_tokens_to_ids("c")
    assert c != C
    ours = {"reward_processing_class": reward_tokenizer} if trainer_class is FineGrainedPPOTrainer else {}
    trainer = scenario.train(
        trainer_class,
        policy=tiny.bigram_lm({A: {B: 1.0}, B: {D: 1.0}, D: {C: 1.0}}),
        reward=tiny.unigram_classifier({c: 2.0, C: -1.0}),
        response_length=3,
        arguments=ours,
    )
    assert logged(trainer, "objective/scores") == pytest.approx(expected)


@ours_and_trls(right="trained", wrong="AttributeError")
def test_the_reward_may_be_a_function(scenario, trainer_class, expected):
    def reward(completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    assert outcome_of(scenario.train, trainer_class, reward=reward) == expected
