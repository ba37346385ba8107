"""The callback that runs between updates."""

from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import TrainerCallback


if TYPE_CHECKING:
    from .trainer import FineGrainedPPOTrainer


class UpdateCallback(TrainerCallback):
    """At the end of an update: print samples, and count epochs in prompts."""

    def __init__(self, trainer: "FineGrainedPPOTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        trainer, schedule = self.trainer, self.trainer.schedule
        # A stream has no length, so the whole run is its epoch.
        is_stream = not isinstance(trainer.train_dataset, Dataset)
        size = schedule.num_episodes if is_stream else len(trainer.train_dataset)
        update, within = divmod(state.global_step, schedule.steps_per_update)
        state.epoch = state.global_step / schedule.steps_per_update * schedule.batch_size / size
        times = args.num_sample_generations
        if within == 0 and times > 0 and (update - 1) % max(1, schedule.num_updates // times) == 0:
            trainer.generate_completions(sampling=True)
