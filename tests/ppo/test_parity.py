"""Where TRL's PPOTrainer is right, ours computes the same: on completions of full length, with a terminal reward."""

import sys
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

import tiny
from trl_tokenreward._trl import TRL_HAS_PPO, PPOConfig, PPOTrainer
from trl_tokenreward.ppo.collector import RolloutCollector
from trl_tokenreward.ppo.config import FineGrainedPPOConfig
from trl_tokenreward.ppo.forward import completion_logps
from trl_tokenreward.ppo.prompts import Prompts
from trl_tokenreward.ppo.rollout import Completions
from trl_tokenreward.ppo.trainer import FineGrainedPPOTrainer


pytestmark = pytest.mark.skipif(not TRL_HAS_PPO, reason="this version of TRL has no PPOTrainer to compare with")

LENGTH = 6
PAD, EOS = 0, 1
# Fields of our rollout and the local variables of TRL's train() that hold the same.
SAME_NAMES = {
    "per_token_logps": "logprobs",
    "ref_per_token_logps": "ref_logprobs",
    "kl": "kl",
    "values": "values",
    "token_level_rewards": "rewards",
    "advantages": "advantages",
    "returns": "returns",
}
SAME_METRICS = [
    "objective/kl",
    "objective/entropy",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/num_eos_tokens",
    "lr",
    "episode",
]


def arguments(tmp_path, **kwargs):
    defaults = {
        "output_dir": str(tmp_path),
        "response_length": LENGTH,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_ppo_epochs": 1,
        "total_episodes": 8,
        "learning_rate": 1e-3,
        # A gradient that is 0 but for rounding, such as that of a key's bias, is not to become a step of Adam.
        "adam_epsilon": 1e-6,
        "lr_scheduler_type": "constant",
        # What TRL's trainer ignores is switched off in ours.
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "num_sample_generations": 0,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return {**defaults, **kwargs}


def models(family):
    models = {
        "model": tiny.causal_lm(family, seed=0),
        "ref_model": tiny.causal_lm(family, seed=1),
        "reward_model": tiny.sequence_classifier(family, seed=2),
        "value_model": tiny.sequence_classifier(family, seed=3),
    }
    # Larger weights than the usual initial ones, so that no quantity is near its trivial value.
    for model in models.values():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 4
    return models


def prompts():
    """Twice as many as are used: TRL takes a step after every micro-batch at the end of its data."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 8, (32,), generator=generator).tolist()
    return Dataset.from_dict(
        {"input_ids": [torch.randint(2, 300, (n,), generator=generator).tolist() for n in lengths]}
    )


def train_with_trl(tmp_path, family, **config):
    """TRL's quantities of each update, its logs and the trained parameters."""
    import trl.experimental.ppo.ppo_trainer as module

    updates = []
    sample = module.batch_generation

    def sample_without_special_tokens(model, queries, *args):
        # TRL takes any PAD for padding and there is no EOS to compare on, so completions with either are drawn again.
        for _ in range(1000):
            query_responses, logits = sample(model, queries, *args)
            responses = query_responses[:, queries.shape[1] :]
            if not ((responses == PAD) | (responses == EOS)).any():
                mask = queries != PAD
                updates.append({"queries": queries, "mask": mask.long(), "responses": responses})
                return query_responses, logits
        raise AssertionError("no completions without special tokens")

    def look(*args, **kwargs):
        """Called by train() between its stages: here its local variables can be read."""
        frame = sys._getframe(1)
        if frame.f_code.co_name == "train" and "returns" in frame.f_locals:
            names = (*SAME_NAMES.values(), "pg_loss_stats", "vf_loss_stats", "scores")
            updates[-1].update({k: frame.f_locals[k].clone() for k in names if k in frame.f_locals})

    logs = []
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "batch_generation", sample_without_special_tokens)
        patch.setattr(module, "empty_cache", look)
        patch.setattr(PPOTrainer, "log", lambda self, metrics: logs.append(dict(metrics)))
        trainer = PPOTrainer(
            args=PPOConfig(**arguments(tmp_path / "trl", **config)),
            processing_class=tiny.tokenizer(),
            train_dataset=prompts(),
            eval_dataset=prompts(),
            **models(family),
        )
        trainer.train()
    return SimpleNamespace(updates=updates, logs=logs, model=trainer.model)


class GivenCompletions(RolloutCollector):
    """Has the prompts and completions of another run."""

    def collate(self, rows):
        return Prompts(self.given["queries"], self.given["mask"])

    def generate(self, prompts, uniform, temperature):
        ids = self.given["responses"]
        input_ids, mask = torch.cat([prompts.ids, ids], 1), torch.cat([prompts.mask, torch.ones_like(ids)], 1)
        with torch.no_grad():
            logps = completion_logps(self.inference.models.policy, input_ids, mask, LENGTH, temperature)
        return Completions(ids, torch.ones_like(ids), logps, torch.zeros(len(ids), dtype=torch.bool))


class SameCompletions(FineGrainedPPOTrainer):
    """Has the prompts and completions of another run, and keeps its rollouts."""

    _collector_class = GivenCompletions

    def __init__(self, updates, **kwargs):
        super().__init__(**kwargs)
        self.updates, self.rollouts, self.losses = updates, [], []

    def collect_rollout(self, update):
        self.collector.given = self.updates[update]
        rollout = super().collect_rollout(update)
        self.rollouts.append(rollout)
        return rollout

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        statistics = self.step_statistics
        self.losses.append(dict(zip(statistics._names, statistics._steps[-1].tolist(), strict=True)))
        return loss


def train_with_ours(tmp_path, family, updates, **config):
    config = arguments(tmp_path / "ours", **config)
    # Logs are compared update by update, as TRL writes them.
    config["logging_steps"] = config["num_ppo_epochs"]
    trainer = SameCompletions(
        updates,
        args=FineGrainedPPOConfig(**config),
        processing_class=tiny.tokenizer(),
        train_dataset=prompts(),
        **models(family),
    )
    trainer.train()
    return trainer


def assert_same(name, ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda message: f"{name}: {message}")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "config",
    [
        {"kl_estimator": "k1"},
        {"kl_estimator": "k3", "whiten_rewards": True},
        {"kl_estimator": "k3", "gamma": 0.9, "lam": 0.5, "temperature": 1.3, "kl_coef": 0.4},
        {"kl_estimator": "k1", "whiten_rewards": True, "num_ppo_epochs": 3},
    ],
    ids=["k1", "k3-whiten", "k3-gamma", "k1-whiten-3-epochs"],
)
def test_rollout_losses_and_update_equal_trls(family, config, tmp_path):
    theirs = train_with_trl(tmp_path, family, **config)
    ours = train_with_ours(tmp_path, family, theirs.updates, **config)

    (update,), (rollout,) = theirs.updates, ours.rollouts
    widths = update["mask"].sum(1)
    assert widths.min() < widths.max()  # the padding is put to the test
    for name, their_name in SAME_NAMES.items():
        assert_same(name, getattr(rollout, name), update[their_name])
    assert_same("scores", rollout.token_level_scores.sum(1), update["scores"])
    for quantity in (rollout.kl, rollout.values, rollout.token_level_scores.sum(1), rollout.advantages):
        assert quantity.std() > 0.01  # far above the tolerance
    # One micro-batch to an epoch: the losses of the first one come before any step.
    for name, stats in {"loss/policy_avg": "pg_loss_stats", "loss/value_avg": "vf_loss_stats"}.items():
        losses = torch.tensor([losses[name] for losses in ours.losses])
        assert_same(name, losses, update[stats].flatten())
    (their_log,), our_log = theirs.logs, ours.state.log_history[0]
    for name in SAME_METRICS:
        assert our_log[name] == pytest.approx(their_log[name], rel=0, abs=2e-5), name
    assert_same_parameters(theirs.model, ours.model, models(family))


def test_several_updates_with_gradient_accumulation_equal_trls(tmp_path):
    config = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "total_episodes": 24,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": 3,
    }
    theirs = train_with_trl(tmp_path, "llama", **config)
    ours = train_with_ours(tmp_path, "llama", theirs.updates, **config)
    assert len(theirs.updates) == len(ours.rollouts) == 3
    assert ours.state.global_step == 6
    for update, rollout in zip(theirs.updates, ours.rollouts, strict=True):
        for name, their_name in SAME_NAMES.items():
            # Differences of the updates before add up; the parameters moved by far more than that.
            assert_same(name, getattr(rollout, name), update[their_name], atol=1e-4)
    assert_same_parameters(theirs.model, ours.model, models("llama"))


def assert_same_parameters(theirs, ours, initial):
    start = {"policy": initial["model"], "value_model": initial["value_model"]}
    for part, before in start.items():
        before = dict(before.named_parameters())
        trained = dict(getattr(theirs, part).named_parameters())
        difference = moved = 0.0
        for name, parameter in getattr(ours, part).named_parameters():
            difference += (parameter - trained[name]).square().sum()
            moved += (parameter - before[name]).square().sum()
        assert moved.sqrt() > 0.05
        assert difference.sqrt() < 1e-3 * moved.sqrt(), part
