"""Rollout: a part of the tests of trainer."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

import tiny
from ppo_scenario import attentive_policy, logged, make_uneven, of_prompt, prompts, weights
from tiny import EOS, PAD, A, B, C, D, E, F
from trl_tokenreward.ppo.batches import packed_groups


@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_rollout_by_hand(scenario, pad_token):
    # A -> C EOS, and B -> D E F, cut off. Policy and reference differ in the choice after A and B alone.
    certain = {C: {EOS: 1.0}, D: {E: 1.0}, E: {F: 1.0}}
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}, B: {D: 1.0}, **certain}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}, B: {D: 0.25, C: 0.75}, **certain}),
        reward=tiny.unigram_reward_model({C: 1.0, EOS: 0.5, D: -1.0, E: 2.0, F: 0.25}),
        value=tiny.unigram_classifier({A: 0.3, C: 0.2, B: 0.1, D: 0.4, E: 0.6, F: 0.7, EOS: 9.0, PAD: 9.0}),
        dataset=prompts([A], [E, E, B]),
        tokenizer=tiny.word_tokenizer(pad_token),
        per_device_train_batch_size=2,
        stop_token="eos",
        response_length=3,
        kl_coef=0.1,
        gamma=0.9,
        lam=0.5,
        missing_eos_penalty=0.05,
        bootstrap_truncated=True,
    )
    rollout = trainer.collect_rollout(0)
    ended, cut_off = of_prompt(rollout, A), of_prompt(rollout, E)

    def close(tensor, values):
        torch.testing.assert_close(tensor, torch.tensor(values), rtol=0, atol=1e-5)

    assert ended.prompt_mask.tolist() == [0, 0, 1]
    assert ended.completion_ids.tolist() == [C, EOS, trainer.processing_class.pad_token_id]
    assert cut_off.completion_ids.tolist() == [D, E, F]
    assert ended.completion_mask.tolist() == [1, 1, 0] and cut_off.completion_mask.tolist() == [1, 1, 1]
    assert bool(ended.ended) and not cut_off.ended
    close(ended.per_token_logps, [0.0, 0, 0])
    close(ended.kl, [0.693147, 0, 0])  # log 1/0.5
    close(cut_off.kl, [1.386294, 0, 0])  # log 1/0.25
    close(ended.token_level_scores, [1.0, 0.5, 0])
    close(cut_off.token_level_scores, [-1.0, 2, 0.2])
    close(ended.token_level_rewards, [0.9306853, 0.5, 0])
    close(cut_off.token_level_rewards, [-1.1386294, 2, 0.2])
    close(ended.values[:2], [0.3, 0.2])
    close(cut_off.values, [0.1, 0.4, 0.6])
    close(cut_off.final_values, 0.7)
    # From the right: 0.5 - 0.2 = 0.3; then 0.9306853 + 0.9 * 0.2 - 0.3 + 0.45 * 0.3.
    close(ended.returns, [0.9456853 + 0.3, 0.3 + 0.2, 0])
    # 0.2 + 0.9 * 0.7 - 0.6 = 0.23; 2 + 0.9 * 0.6 - 0.4 + 0.45 * 0.23 = 2.2435;
    # -1.1386294 + 0.9 * 0.4 - 0.1 + 0.45 * 2.2435 = 0.1309456.
    close(cut_off.returns, [0.1309456 + 0.1, 2.2435 + 0.4, 0.23 + 0.6])
    # Whitened over the five: their mean is 0.7700262, their standard deviation 0.8835946.
    close(ended.advantages, [0.198801, -0.531947, 0])
    close(cut_off.advantages, [-0.723273, 1.667590, -0.611169])


def test_k3_is_the_other_estimator(scenario):
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 1.0}}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}}),
        response_length=1,
        kl_estimator="k3",
    )
    # q/p - 1 - log q/p = 0.5 - 1 + 0.693147
    torch.testing.assert_close(trainer.collect_rollout(0).kl, torch.full((4, 1), 0.193147), rtol=0, atol=1e-5)


def test_the_policy_is_trained_at_the_temperature_that_it_is_sampled_at(scenario):
    # Probabilities 0.8 and 0.2 become 2/3 and 1/3 at temperature 2, and 1/2 and 1/2 stay as they are.
    trainer = scenario.make(
        policy=tiny.bigram_lm({A: {C: 0.8, D: 0.2}}),
        ref_model=tiny.bigram_lm({A: {C: 0.5, D: 0.5}}),
        dataset=prompts(*[[A]] * 8),
        per_device_train_batch_size=8,
        response_length=1,
        temperature=2.0,
    )
    rollout = trainer.collect_rollout(0)
    is_c = rollout.completion_ids == C
    assert 0 < is_c.sum() < 8
    # The other 14 tokens have 1e-6 each.
    expected = torch.where(is_c, math.log(2 / 3), math.log(1 / 3))
    torch.testing.assert_close(rollout.per_token_logps, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(rollout.kl, expected - math.log(1 / 2), rtol=0, atol=1e-4)
    trainer.train()
    assert logged(trainer, "val/ratio") == pytest.approx([1.0], abs=1e-5)
    assert logged(trainer, "policy/entropy_avg") == pytest.approx([math.log(3) - 2 / 3 * math.log(2)], abs=1e-3)


def test_the_score_of_a_token_moves_its_own_advantage_alone_where_lam_is_0(scenario):
    def rollout(bonus):
        def reward(completion_ids, **kwargs):
            return [[1.0, 0.0, bonus, 1.0] for _ in completion_ids]

        # Whitening moves all advantages, so the raw ones are looked at.
        result = scenario.make(reward=reward, lam=0.0).collect_rollout(0)
        return result.returns - result.values

    moved = (rollout(0.0) != rollout(5.0)).any(0)
    assert moved.tolist() == [False, False, True, False]


def test_whitened_rewards_have_unit_variance(scenario):
    reward = tiny.unigram_reward_model({token: token / 3 for token in range(16)})
    rollout = scenario.make(reward=reward, whiten_rewards=True, kl_coef=0.1).collect_rollout(0)
    plain = scenario.make(reward=reward, kl_coef=0.1).collect_rollout(0)
    assert rollout.token_level_rewards.var() == pytest.approx(1, abs=1e-5)
    assert rollout.token_level_rewards.mean() == pytest.approx(float(plain.token_level_rewards.mean()), abs=1e-5)


def test_the_default_value_model_is_a_copy_of_the_reward_model_with_values_of_0(scenario):
    reward = tiny.unigram_reward_model({C: 1.0}, {C: 2.0})
    before = weights(reward)
    trainer = scenario.make(reward=reward, dataset=prompts([C]), arguments={"value_model": None})
    assert torch.equal(weights(trainer.value_model.model), weights(reward.model))
    assert trainer.collect_rollout(0).values[:, 0].tolist() == [0.0] * 4
    trainer.train()
    assert torch.equal(weights(reward), before)
    assert not torch.equal(weights(trainer.value_model), before)


def test_padding_changes_nothing(scenario):
    dataset = prompts([A, B, C], [D], [E, F], [B, B])

    def collator(rows):
        width = 7
        return {
            "input_ids": torch.tensor([[F] * (width - len(r["input_ids"])) + r["input_ids"] for r in rows]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(r["input_ids"])) + [1] * len(r["input_ids"]) for r in rows]
            ),
        }

    def rollout(**kwargs):
        return scenario.make(
            policy=attentive_policy(),
            ref_model=attentive_policy(seed=1),
            reward=tiny.sequence_classifier(vocab_size=16, initializer_range=0.3),
            value=tiny.sequence_classifier(seed=2, vocab_size=16, initializer_range=0.3),
            dataset=dataset,
            stop_token="eos",
            response_length=12,
            **kwargs,
        ).collect_rollout(0)

    plain = rollout()
    assert 0 < plain.completion_mask.float().mean() < 1
    for other in (
        rollout(tokenizer=tiny.word_tokenizer("<eos>")),
        rollout(arguments={"data_collator": collator}),
        rollout(local_rollout_forward_batch_size=1),
    ):
        for name in ("completion_mask", "ended"):
            assert torch.equal(getattr(plain, name), getattr(other, name))
        real = plain.completion_mask.bool()
        assert torch.equal(plain.completion_ids[real], other.completion_ids[real])
        for name in ("per_token_logps", "ref_per_token_logps", "values", "token_level_scores", "advantages", "returns"):
            torch.testing.assert_close(getattr(plain, name)[real], getattr(other, name)[real], rtol=2e-6, atol=2e-6)


def test_the_models_need_not_know_the_pad_token(scenario):
    # As where a script adds one to the tokenizer and leaves the embeddings as they are.
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 16
    settings = {"dataset": prompts([A], [B, B]), "response_length": 8, "stop_token": "eos", "total_episodes": 8}
    settings["policy"] = tiny.bigram_lm({token: {EOS: 0.4, C: 0.6} for token in range(16)})
    trainer = scenario.train(tokenizer=tokenizer, reward=tiny.unigram_reward_model({C: 1.0}), **settings)
    assert not trainer.collect_rollout(0).completion_mask.all()
    trainer.save_model()
    AutoModelForCausalLM.from_pretrained(scenario.directory)  # whose configuration does not know it either


def test_junk_in_masked_places_leaves_loss_and_gradient_alone(scenario):
    trainer = make_uneven(scenario)
    rollout = trainer.collect_rollout(0)
    masked = ~rollout.completion_mask.bool()
    assert masked.any()
    junk = rollout._replace(
        prompt_ids=torch.where(rollout.prompt_mask.bool(), rollout.prompt_ids, F),
        completion_ids=torch.where(masked, F, rollout.completion_ids),
        **{
            name: torch.where(masked, 3.0, getattr(rollout, name))
            for name in ("per_token_logps", "values", "advantages", "returns")
        },
    )
    results = []
    for contents in (rollout, junk):
        trainer.model.zero_grad()
        (batch,) = packed_groups(contents, torch.arange(4), trainer.accelerator, 4)
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient))
    assert results[0][1].abs().max() > 0
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)
