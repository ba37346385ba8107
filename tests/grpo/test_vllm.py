"""GRPO with rewards of tokens whose completions are vLLM's: TRL's own code runs, over a stand-in for vLLM."""

from contextlib import contextmanager

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import fake_vllm
import tiny
from tiny import EOS, A, B, C, D
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer
from trl_tokenreward.grpo.functional import group_advantages


pytest.importorskip("requests", reason="TRL talks to vLLM by requests (extra: dev)")

SCORES = {A: 1.0, B: -2.0, C: 0.5, D: 0.0, EOS: 0.25}
GROUP, LENGTH, STEPS = 4, 6, 3


@contextmanager
def vllm(mode, folder):
    """Settings, and a function that returns the stand-in once the trainer is there."""
    if mode == "colocate":
        with fake_vllm.colocate() as made:
            yield {"vllm_mode": mode}, lambda: made[0]
    else:
        with fake_vllm.server(folder) as fake:
            yield {"vllm_mode": mode, "vllm_server_base_url": fake.url}, lambda: fake


def by_token(completion_ids, **_):
    return [[SCORES.get(i, 0.0) for i in ids] for ids in completion_ids]


@pytest.mark.parametrize("kind", ["function", "model"])
@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_the_tokens_of_vllm_get_advantages_of_their_own(mode, kind, tmp_path):
    folder = str(tmp_path / "policy")
    tiny.causal_lm(vocab_size=16, initializer_range=0.5).save_pretrained(folder)
    reward = by_token if kind == "function" else tiny.unigram_reward_model(SCORES)
    plain = {"token_score_transform": "none", "reward_clip": 1e9, "center_rewards": False, "hold_length": False}
    with vllm(mode, folder) as (settings, vllm_of):
        args = FineGrainedGRPOConfig(
            str(tmp_path),
            use_vllm=True,
            **settings,
            **(plain if kind == "model" else {}),
            per_device_train_batch_size=2 * GROUP,
            num_generations=GROUP,
            max_completion_length=LENGTH,
            max_steps=STEPS,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = FineGrainedGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder),
            reward,
            args,
            Dataset.from_dict({"prompt": ["a b", "c", "d e f", "a a b"] * 4}),
            processing_class=tiny.word_tokenizer(),
        )
        expected_weights, rollouts = [], []
        generate = trainer._generate_and_score_completions

        def keep(inputs):
            expected_weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
            rollouts.append(generate(inputs))
            return rollouts[-1]

        trainer._generate_and_score_completions = keep
        trainer.train()
        fake = vllm_of()
    assert len(fake.requests) == len(rollouts) == STEPS
    for weights, expected in zip(fake.generated_with, expected_weights, strict=True):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert not torch.equal(expected_weights[0]["lm_head.weight"], expected_weights[-1]["lm_head.weight"])
    of_token = torch.tensor([SCORES.get(i, 0.0) for i in range(16)])
    for output in rollouts:
        mask = output["completion_mask"]
        rewards = of_token[output["completion_ids"]] * mask
        expected = group_advantages(rewards, mask.bool(), mask, GROUP, "process", "group")
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if kind == "function" else {"atol": 0.02, "rtol": 0.01}
        torch.testing.assert_close(output["advantages"], expected, **tolerance)
        assert output["advantages"].abs().sum() > 1
        # TRL corrects for what vLLM's log-probabilities differ by, which is nothing here.
        ratio = output["importance_sampling_ratio"]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-3, rtol=0)
