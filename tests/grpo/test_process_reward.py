"""A model that is trained on steps is a process reward model, and the reward model of PPO and GRPO."""

import random

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import tiny
from trl_tokenreward import (
    FineGrainedGRPOConfig,
    FineGrainedGRPOTrainer,
    FineGrainedPPOConfig,
    FineGrainedPPOTrainer,
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
    evaluate_steps,
)
from trl_tokenreward.data.steps import steps_row


ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
PROMPTS = Dataset.from_dict({"prompt": ["e", "f", "g", "h"] * 4})


def solutions(number: int, seed: int, step_labels: str = "every_token") -> Dataset:
    """Solutions of one to three steps, of which those with a "c" are wrong."""
    rng, rows = random.Random(seed), []
    for _ in range(number):
        steps = [" ".join([*rng.choices("abcd", k=rng.randint(1, 3)), "."]) for _ in range(rng.randint(1, 3))]
        labels = ["c" not in step for step in steps]
        rows.append(steps_row(rng.choice("efgh") + " ", steps, labels, " ", step_labels))
    return Dataset.from_list(rows)


def trained(folder, step_labels: str) -> TokenRewardModel:
    torch.manual_seed(0)
    trainer = TokenRewardTrainer(
        TokenRewardModel.from_backbone(tiny.causal_lm(vocab_size=16)),
        TokenRewardConfig(
            str(folder),
            max_steps=60,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            gradient_checkpointing=False,
            logging_steps=20,
            **ON_CPU,
        ),
        train_dataset=solutions(128, 0, step_labels),
        processing_class=tiny.word_tokenizer(),
    )
    before = trainer.model.score.weight.clone()
    trainer.train()
    assert torch.equal(trainer.model.score.weight, before)  # one side trains no sequence head
    return trainer.model.eval()


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("reward"), "every_token")


def report_of(model, step_labels):
    return evaluate_steps(
        model,
        tiny.word_tokenizer(),
        solutions(40, 1, step_labels),
        aggregation="last",
        threshold_dataset=solutions(40, 2, step_labels),
        resamples=20,
    )


def test_it_finds_the_wrong_steps_of_other_solutions(reward_model):
    report = report_of(reward_model, "every_token")
    assert 30 < report.wrong_steps < report.steps - 30
    assert report.step_auroc.value > 0.9 and report.step_f1.value > 0.8 and report.first_wrong_f1.value > 0.6


def test_labels_on_the_last_token_teach_that_token_alone(tmp_path):
    model = trained(tmp_path, "last_token")
    assert report_of(model, "last_token").step_auroc.value > 0.9


def mean_share_of_c(completions: torch.Tensor) -> float:
    return float((completions == tiny.C).float().mean())


def test_it_is_the_reward_model_of_ppo(reward_model, tmp_path):
    trainer = FineGrainedPPOTrainer(
        FineGrainedPPOConfig(
            str(tmp_path),
            total_episodes=256,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            response_length=8,
            num_ppo_epochs=2,
            num_mini_batches=1,
            learning_rate=1e-2,
            kl_coef=0.0,
            temperature=1.0,
            num_sample_generations=0,
            gradient_checkpointing=False,
            reward_signal="token_scores",
            **ON_CPU,
        ),
        tiny.word_tokenizer(),
        tiny.causal_lm(vocab_size=16, seed=3),
        reward_model=reward_model,
        train_dataset=PROMPTS,
    )
    first = trainer.collect_rollout(0)
    trainer.train()
    last = trainer.collect_rollout(9)
    share = [mean_share_of_c(rollout.completion_ids) for rollout in (first, last)]
    assert share[0] > 0.03 and share[1] < share[0] / 2


def test_it_is_the_reward_model_of_grpo(reward_model, tmp_path):
    folder = tmp_path / "policy"
    tiny.causal_lm(vocab_size=16, seed=3).save_pretrained(folder)
    trainer = FineGrainedGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward_model,
        FineGrainedGRPOConfig(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            logging_steps=1,
            gradient_checkpointing=False,
            reward_signal="token_scores",
            **ON_CPU,
        ),
        PROMPTS,
        processing_class=tiny.word_tokenizer(),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2 and all(torch.isfinite(torch.tensor(log["loss"])) for log in logs)
    assert all(log["reward_std"] > 0 for log in logs)
