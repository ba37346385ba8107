"""A GRPO run that is the same on any number of processes: which completions there are follows from their places.

As a script: `python grpo_runs.py OUTPUT RUN...` trains each run and writes its parameters to `OUTPUT/RUN-RANK.pt`.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM

import ppo_runs
import tiny
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer


NUM_GENERATIONS, BATCH_SIZE = 4, 8
RUNS: dict[str, dict[str, Any]] = {
    "process": {"reward": "model"},
    "leave_one_out": {"reward": "model", "advantage_estimator": "leave_one_out", "scale_rewards": "batch"},
    # The reward model reads what is generated for two optimizer steps.
    "two_steps": {"reward": "model", "advantage_estimator": "leave_one_out", "steps_per_generation": 2},
    "function": {"reward": "function", "reward_density": "sentence"},
}


class Trainer(FineGrainedGRPOTrainer):
    """Keeps the advantages of the completions that it generates first, shape (B, T), in their order."""

    first_advantages: torch.Tensor | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self.first_advantages is None:
            self.first_advantages = output["advantages"].clone()
        return output


def kept_batches(trainer: FineGrainedGRPOTrainer) -> list[dict[str, Any]]:
    """What each rollout gives."""
    kept, original = [], trainer._generate_and_score_completions

    def keep(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = original(inputs)
        kept.append({name: value.clone() if torch.is_tensor(value) else value for name, value in output.items()})
        return output

    trainer._generate_and_score_completions = keep
    return kept


def completions(step: int, place: int) -> list[int]:
    """Completion number `place` of a batch: of 1 to 7 tokens."""
    generator = torch.Generator().manual_seed(1000 * step + place)
    length = int(torch.randint(1, 8, (), generator=generator))
    return torch.randint(3, ppo_runs.VOCAB_SIZE, (length,), generator=generator).tolist()


def rollout(prompts: list[str], trainer: FineGrainedGRPOTrainer) -> dict[str, Any]:
    first = trainer.accelerator.process_index * len(prompts)
    ids = [completions(trainer.state.global_step, first + i) for i in range(len(prompts))]
    prompt_ids = trainer.processing_class(prompts)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[-1.0] * len(row) for row in ids]}


def make(run: str, directory: str | os.PathLike) -> Trainer:
    on_cpu = os.environ.get("ACCELERATE_TORCH_DEVICE") != "cpu"
    state = PartialState(cpu=on_cpu)
    settings = dict(RUNS[run])
    reward = settings.pop("reward")
    folder = Path(directory, "policy")
    if state.is_main_process:
        ppo_runs.scaled(tiny.causal_lm(seed=0, vocab_size=ppo_runs.VOCAB_SIZE)).save_pretrained(folder)
    state.wait_for_everyone()
    warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
    return Trainer(
        AutoModelForCausalLM.from_pretrained(folder),
        ppo_runs.token_reward_model() if reward == "model" else ppo_runs.early_letters,
        FineGrainedGRPOConfig(
            str(directory),
            per_device_train_batch_size=BATCH_SIZE // state.num_processes,
            num_generations=NUM_GENERATIONS,
            max_completion_length=8,
            max_steps=4,
            learning_rate=3e-3,
            adam_epsilon=1e-5,
            beta=0.04,
            gradient_checkpointing=False,
            save_strategy="no",
            bf16=False,
            use_cpu=on_cpu,
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        Dataset.from_dict({"prompt": ["a b", "c", "d e a", "b b"]}),
        processing_class=tiny.word_tokenizer(),
        rollout_func=rollout,
    )


def parameters(trainer: FineGrainedGRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: ppo_runs._whole(tensor).detach().clone() for name, tensor in trainer.model.state_dict().items()}


def main() -> None:
    output, *runs = sys.argv[1:]
    for run in runs:
        trainer = make(run, Path(output, run))
        trainer.train()
        rank = trainer.accelerator.process_index
        torch.save(parameters(trainer), Path(output, f"{run}-{rank}.pt"))
        torch.save(trainer.first_advantages.cpu(), Path(output, f"{run}-advantages-{rank}.pt"))


if __name__ == "__main__":
    main()
