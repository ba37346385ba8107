"""What the tests of ppo share: ppo scenario."""

import math

import torch
from datasets import Dataset
from torch.nn.utils import parameters_to_vector

import tiny
from tiny import EOS, A, B, C, D
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer
from trl_tokenreward._trl import PPOConfig


def prompts(*rows):
    return Dataset.from_dict({"input_ids": [list(row) for row in rows]})


# Token scores as they are, so that they can be followed by hand.
RAW = {
    "token_score_transform": "none",
    "reward_scale": 1.0,
    "center_rewards": False,
    "reward_clip": math.inf,
    "hold_length": False,
}


class Scenario:
    """Makes trainers of either class. Plain SGD and no KL penalty, so that what a policy learns is known by hand."""

    def __init__(self, directory):
        self.directory = str(directory)

    def make(
        self,
        trainer_class=FineGrainedPPOTrainer,
        policy=None,
        reward=None,
        value=None,
        dataset=None,
        tokenizer=None,
        ref_model=None,
        eval_dataset=None,
        callbacks=None,
        arguments=(),
        **settings,
    ):
        settings = {
            "output_dir": self.directory,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "num_sample_generations": 0,
            "logging_steps": 1,
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4,
            "num_ppo_epochs": 1,
            "max_grad_norm": 1e9,
            "temperature": 1.0,
            "kl_coef": 0.0,
            "response_length": 4,
            **settings,
        }
        if "total_episodes" not in settings and "num_train_epochs" not in settings and "max_steps" not in settings:
            batch_size = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
            settings["total_episodes"] = batch_size
        config_class = PPOConfig
        if trainer_class is FineGrainedPPOTrainer:
            config_class, settings = FineGrainedPPOConfig, {**RAW, **settings}
        arguments = {
            "args": config_class(**settings),
            "processing_class": tokenizer or tiny.word_tokenizer(),
            "model": policy or tiny.bigram_lm(),
            "ref_model": ref_model,
            "reward_model": reward or tiny.unigram_classifier({token: token / 10 for token in range(16)}),
            "value_model": value or tiny.unigram_classifier(),
            "train_dataset": dataset or prompts(*[[A]] * 12),
            "eval_dataset": eval_dataset,
            "callbacks": callbacks,
            **dict(arguments),
        }
        return trainer_class(**arguments)

    def train(self, *args, **kwargs):
        trainer = self.make(*args, **kwargs)
        trainer.train()
        return trainer


def weights(model):
    return parameters_to_vector(model.parameters()).detach().clone()


def logged(trainer, name):
    """The values that were logged under a name, in order."""
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


def next_token_probabilities(policy, token):
    with torch.no_grad():
        return policy(torch.tensor([[token]])).logits[0, -1].softmax(-1)


def training_forwards(module, look):
    """A list that gets `look(inputs, output)` of each forward pass of `module` that builds a graph."""
    seen = []

    def hook(module, args, kwargs, output):
        if torch.is_grad_enabled():
            seen.append(look({"args": args, **kwargs}, output))

    module.register_forward_hook(hook, with_kwargs=True)
    return seen


def attentive_policy(**kwargs):
    """A policy whose attention matters."""
    return tiny.causal_lm(vocab_size=16, initializer_range=0.3, **kwargs)


def of_prompt(rollout, first_token):
    """The row of a rollout whose prompt begins with a token."""
    starts = [ids[mask.bool()][0].item() for ids, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
    row = starts.index(first_token)
    return type(rollout)(*(x[row] for x in rollout))


def make_uneven(scenario):
    """A trainer with prompts and completions of unequal lengths."""
    return scenario.make(
        policy=tiny.bigram_lm({token: {EOS: 0.3, C: 0.4, D: 0.3} for token in range(16)}),
        stop_token="eos",
        dataset=prompts([A, B], [B], [C], [D, D, D]),
        response_length=8,
    )
