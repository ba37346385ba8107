"""As a script on several processes: `python not_finite_run.py OUTPUT` has the last process alone meet a number that is
not finite, in several places one after the other, and writes to OUTPUT what each process raised."""

import json
import math
import sys
from pathlib import Path

import torch
from datasets import Dataset

import ppo_runs
import tiny
from reward_trainer_cases import ROWS
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer


def is_last(accelerator) -> bool:
    return accelerator.process_index == accelerator.num_processes - 1


def in_a_reward(directory):
    calls = []

    def reward(completion_ids, **_):
        calls.append(1)
        bad = len(calls) == 2 and is_last(trainer.accelerator)
        return [1e38 if bad else 0.0] * len(completion_ids)

    def models(family):
        return {**ppo_runs.RUNS["terminal"]["models"](family), "reward_model": reward}

    trainer = ppo_runs.make("terminal", directory, models=models, save_steps=4, eval_strategy="no")
    trainer.train()


def in_an_evaluation(directory):
    def reward(completion_ids, **_):
        return [1e38 if is_last(trainer.accelerator) else 0.0] * len(completion_ids)

    def models(family):
        return {**ppo_runs.RUNS["terminal"]["models"](family), "reward_model": reward}

    trainer = ppo_runs.make("terminal", directory, models=models)
    trainer.evaluate()


def in_a_loss(directory):
    trainer = ppo_runs.make("terminal", directory)
    compute_loss = trainer.compute_loss

    def broken(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        if is_last(trainer.accelerator):
            trainer.step_statistics.add({"loss/policy_avg": torch.tensor(math.nan)})
        return loss

    trainer.compute_loss = broken
    trainer.train()


def in_a_weight(directory):
    trainer = ppo_runs.make("terminal", directory)
    if is_last(trainer.accelerator):
        next(trainer.policy_model.parameters()).data[0] = math.nan
    trainer.save_model()


def in_token_scores(directory):
    args = TokenRewardConfig(str(directory), use_cpu=True, bf16=False, report_to="none", max_steps=1)
    trainer = TokenRewardTrainer(
        tiny.causal_lm(), args, train_dataset=Dataset.from_list(ROWS), processing_class=tiny.tokenizer()
    )

    def broken(module, inputs, output):
        if is_last(trainer.accelerator):
            output.token_scores.data.fill_(math.nan)

    # Not a weight: DDP gives all processes those of the first.
    trainer.model.register_forward_hook(broken)
    trainer.train()


CASES = (in_a_reward, in_an_evaluation, in_a_loss, in_a_weight, in_token_scores)


def main() -> None:
    directory = Path(sys.argv[1])
    raised = {}
    for case in CASES:
        try:
            case(directory / case.__name__)
        except ValueError as error:
            raised[case.__name__] = str(error)
    from accelerate import PartialState

    (directory / f"outcome-{PartialState().process_index}.json").write_text(json.dumps(raised))


if __name__ == "__main__":
    main()
