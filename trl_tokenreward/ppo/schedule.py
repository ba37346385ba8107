"""How many completions an update collects, and how many updates and optimizer steps a run takes."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from torch import Tensor

from .config import FineGrainedPPOConfig


# First entries of the seeds of what is drawn, so that the streams of random numbers never meet.
SAMPLING, MINI_BATCHES, EVALUATION = range(3)


@dataclass(frozen=True)
class Schedule:
    """The sizes of a run.

    Args:
        num_processes (`int`):
            Processes that train together.
        local_batch_size (`int`):
            Completions of one update on each process.
        num_epochs (`int`):
            Passes over the completions of an update.
        num_mini_batches (`int`):
            Optimizer steps in each pass.
        num_updates (`int`):
            Updates of the run.
    """

    num_processes: int
    local_batch_size: int
    num_epochs: int
    num_mini_batches: int
    num_updates: int

    @classmethod
    def plan(cls, args: FineGrainedPPOConfig, dataset: Dataset | IterableDataset) -> "Schedule":
        """The schedule that training arguments and a data set of prompts ask for.

        Raises:
            ValueError: If the sizes do not divide each other, or nothing says how long the run is.
        """
        num_processes = args.distributed_state.num_processes
        local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if local_batch_size % args.num_mini_batches != 0:
            raise ValueError(
                f"`per_device_train_batch_size * gradient_accumulation_steps` = {local_batch_size} must be a multiple "
                f"of `num_mini_batches` = {args.num_mini_batches}."
            )
        num_updates = _number_of_updates(args, dataset, local_batch_size * num_processes)
        schedule = cls(num_processes, local_batch_size, args.num_ppo_epochs, args.num_mini_batches, num_updates)
        _check_best_model(args, schedule)
        return schedule

    @property
    def batch_size(self) -> int:
        """Completions of one update, over all processes."""
        return self.local_batch_size * self.num_processes

    @property
    def mini_batch_size(self) -> int:
        """Completions of one optimizer step, over all processes."""
        return self.batch_size // self.num_mini_batches

    @property
    def steps_per_update(self) -> int:
        return self.num_epochs * self.num_mini_batches

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.num_updates * self.steps_per_update

    @property
    def num_episodes(self) -> int:
        """Completions of the run."""
        return self.num_updates * self.batch_size

    def mini_batches(self, seed: int, update: int) -> Iterator[Tensor]:
        """The rows of each mini-batch of an update, `steps_per_update` tensors of shape (mini_batch_size,).

        Every process draws the same order, so that the rows of a mini-batch do not depend on the number of processes.
        """
        for epoch in range(self.num_epochs):
            order = np.random.default_rng([MINI_BATCHES, seed, update, epoch]).permutation(self.batch_size)
            yield from torch.from_numpy(order).split(self.mini_batch_size)


def share_of(number: int, accelerator: Accelerator) -> range:
    """Which of `number` rows this process has: one block after the other, as evenly as possible. Not by accelerate's
    `split_between_processes`: before 1.14 it gave the last row to every process that had none."""
    size, left = divmod(number, accelerator.num_processes)
    first = accelerator.process_index * size + min(accelerator.process_index, left)
    return range(first, first + size + (accelerator.process_index < left))


def trainer_arguments(args: FineGrainedPPOConfig, schedule: Schedule) -> FineGrainedPPOConfig:
    """A copy of the arguments in the terms of [`~transformers.Trainer`]'s loop."""
    args = copy.copy(args)
    args.max_steps = schedule.num_steps
    args.total_episodes = schedule.num_episodes
    # `training_step` takes a whole mini-batch, whose rows it groups by length.
    args.gradient_accumulation_steps = 1
    # The rows of an update follow from its number, so there is nothing to skip when a run is resumed.
    args.ignore_data_skip = True
    if any(field.name == "world_size" for field in fields(args)):
        # TRL 1.12's PPOConfig replaces transformers' property, which Trainer reads, by a field.
        args.world_size = schedule.num_processes
    return args


def _number_of_updates(args: FineGrainedPPOConfig, dataset: Dataset | IterableDataset, batch_size: int) -> int:
    steps_per_update = args.num_ppo_epochs * args.num_mini_batches
    if args.max_steps > 0:
        if args.max_steps % steps_per_update != 0:
            raise ValueError(
                f"`max_steps={args.max_steps}` ends within an update: make it a multiple of num_ppo_epochs * "
                f"num_mini_batches = {steps_per_update}."
            )
        return args.max_steps // steps_per_update
    if args.total_episodes is not None:
        return math.ceil(args.total_episodes / batch_size)
    if not isinstance(dataset, Dataset):
        raise ValueError("A stream has no length: set `total_episodes` or `max_steps`.")
    return math.ceil(args.num_train_epochs * len(dataset) / batch_size)


def _check_best_model(args: FineGrainedPPOConfig, schedule: Schedule) -> None:
    """Checkpoints are written between updates, so the best model must be evaluated there."""
    chosen = args.load_best_model_at_end or args.save_strategy == "best"
    if not chosen or args.eval_strategy != "steps":
        return
    eval_steps = args.eval_steps if args.eval_steps >= 1 else math.ceil(schedule.num_steps * args.eval_steps)
    if eval_steps % schedule.steps_per_update != 0:
        raise ValueError(
            "The best model is chosen among checkpoints, which are written between updates: "
            f"`eval_steps={args.eval_steps}` must be a multiple of num_ppo_epochs * num_mini_batches = "
            f"{schedule.steps_per_update} optimizer steps."
        )
