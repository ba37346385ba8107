"""No tensor of batch * length * vocabulary elements is ever made, in a rollout or in a loss: allocations are
counted."""

import numpy as np
import pytest
import torch
from allocations import allocations
from datasets import Dataset

import tiny
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel


pytestmark = pytest.mark.slow


BATCH, LENGTH, HIDDEN = 32, 128, 16


def trainer(tmp_path, vocab_size, stop_token):
    def model(make, seed):
        return make(seed=seed, vocab_size=vocab_size, tie_word_embeddings=True, max_position_embeddings=256)

    reward_model = TokenRewardModel.from_backbone(model(tiny.sequence_classifier, 1))
    torch.nn.init.normal_(reward_model.token_score.weight)
    generator = np.random.default_rng(0)
    return FineGrainedPPOTrainer(
        args=FineGrainedPPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=BATCH,
            total_episodes=BATCH,
            num_ppo_epochs=1,
            response_length=LENGTH,
            stop_token=stop_token,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            num_sample_generations=0,
            disable_tqdm=True,
        ),
        processing_class=tiny.word_tokenizer(),
        model=model(tiny.causal_lm, 0),
        reward_model=reward_model,
        train_dataset=Dataset.from_dict({"input_ids": generator.integers(3, 10, (BATCH, 5)).tolist()}),
    )


@pytest.mark.parametrize("stop_token", [None, "eos"])
def test_no_allocation_has_the_size_of_the_logits(stop_token, tmp_path):
    vocab_size = 2000
    ppo = trainer(tmp_path, vocab_size, stop_token)
    whole = BATCH * LENGTH * vocab_size * 4
    for run in (lambda: ppo.collect_rollout(0), ppo.train):
        sizes, _ = allocations(run)
        assert sizes.max() >= vocab_size * HIDDEN * 4 or sizes.max() >= BATCH * vocab_size * 4  # the count sees them
        assert sizes.max() <= 0.3 * whole


def test_the_count_sees_logits(tmp_path):
    ppo = trainer(tmp_path, 2000, None)
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    sizes, peak = allocations(lambda: ppo.policy_model(ids))
    assert sizes.max() >= BATCH * LENGTH * 2000 * 4 and peak >= sizes.max()


def test_the_peak_grows_with_the_vocabulary_by_a_fifth_of_the_logits_at_most(tmp_path):
    small, large = 4000, 12_000
    peaks = []
    for vocab_size in (small, large):
        ppo = trainer(tmp_path, vocab_size, None)
        peaks.append(allocations(ppo.train)[1])
    per_entry = (peaks[1] - peaks[0]) / (large - small)
    # The gradients and Adam's two moments of the embeddings, policy's and value model's, are the optimizer's business.
    parameters = 2 * 3 * HIDDEN * 4
    assert parameters < per_entry
    assert per_entry - parameters <= 0.2 * BATCH * LENGTH * 4
