"""Steps of the trainers on a real shape, SmolLM2-135M: reward training and GRPO, each beside TRL's trainer.

    python benchmarks/real_step.py --model models/SmolLM2-135M-Instruct

The trainers of a pair take turns in one process of one thread, in bfloat16, with the same rows, prompts and random
numbers, since their learning rate is as good as 0. `ppo_step.py --settings smollm2` has the same for PPO. `make model`
fetches the model.
"""

import argparse
import random
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from grpo_step import cell, take_turns
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

from density_report import machine
from provenance import commit
from trl_tokenreward import (
    FineGrainedGRPOConfig,
    FineGrainedGRPOTrainer,
    TokenRewardConfig,
    TokenRewardModel,
    TokenRewardTrainer,
)


RESULTS = Path(__file__).resolve().parent / "results" / "real_step.md"
WORDS = "the film was a long and very good story of two old friends in a small town by the sea that we all like".split()
PAIRS, LENGTH = 8, 96
COMPLETIONS, NUM_GENERATIONS, COMPLETION_LENGTH = 16, 8, 48


def settings(folder: str, batch_size: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "seed": 0,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-12,
        "max_steps": 1,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def load(kind: Any, model: str, **kwargs: Any) -> Any:
    return kind.from_pretrained(model, dtype=torch.float32, trust_remote_code=False, **kwargs)


def reward_trainers(model: str, folder: str) -> dict[str, Trainer]:
    """Both have pairs of answers that differ in one word."""
    words, rows = random.Random(0), []
    for _ in range(PAIRS):
        chosen = [words.choice(WORDS) for _ in range(LENGTH)]
        rejected = [*chosen]
        rejected[words.randrange(LENGTH)] = "bad"
        rows.append({"chosen": " ".join(chosen), "rejected": " ".join(rejected)})
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    classifier = load(AutoModelForSequenceClassification, model, num_labels=1)
    token_model = TokenRewardModel.from_backbone(load(AutoModelForCausalLM, model), copy=False)
    return {
        "TRL": RewardTrainer(classifier, RewardConfig(**settings(folder, PAIRS)), **data),
        "ours": TokenRewardTrainer(token_model, TokenRewardConfig(**settings(folder, PAIRS)), **data),
    }


def grpo_trainers(model: str, folder: str) -> dict[str, Trainer]:
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    prompts = Dataset.from_dict({"prompt": [" ".join(WORDS[i : i + 12]) for i in range(8)]})
    config = {
        **settings(folder, COMPLETIONS),
        "num_generations": NUM_GENERATIONS,
        "max_completion_length": COMPLETION_LENGTH,
        "generation_kwargs": {"min_new_tokens": COMPLETION_LENGTH},
    }
    token_model = TokenRewardModel.from_backbone(load(AutoModelForCausalLM, model), copy=False)
    torch.nn.init.normal_(token_model.token_score.weight, std=0.02)
    classifier = load(AutoModelForSequenceClassification, model, num_labels=1)
    data = {"train_dataset": prompts, "processing_class": tokenizer, "reward_processing_classes": tokenizer}
    return {
        "TRL": GRPOTrainer(load(AutoModelForCausalLM, model), classifier, GRPOConfig(**config), **data),
        "ours": FineGrainedGRPOTrainer(
            load(AutoModelForCausalLM, model), token_model, FineGrainedGRPOConfig(**config), **data
        ),
    }


STEPS = {
    f"reward training, {PAIRS} pairs of {LENGTH} words": reward_trainers,
    f"GRPO, {COMPLETIONS} completions of {COMPLETION_LENGTH} tokens": grpo_trainers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="Path or Hub name.")
    parser.add_argument("--turns", type=int, default=5, help="Steps of each trainer.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, make in STEPS.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, ratios = take_turns(make(arguments.model, folder), arguments.turns)
        rows.append(f"| {name} | {cell(seconds['TRL'])} | {cell(seconds['ours'])} | {cell(ratios)} |")
        print(rows[-1], flush=True)
    text = f"""# Steps on the shape of SmolLM2-135M

`python benchmarks/real_step.py --turns {arguments.turns}`, {date.today()}, commit {commit()}, {machine()}.

SmolLM2-135M-Instruct as policy and as backbone of the reward models, bfloat16 over float32 weights, full training, no
gradient checkpointing. TRL's trainers have its sequence classifier. Processor seconds of a step, medians with
quartiles; the ratio is that of neighbouring turns. PPO's update is in [ppo_step_smollm2.md](ppo_step_smollm2.md).

| step | TRL, s | ours, s | ours over TRL's |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
