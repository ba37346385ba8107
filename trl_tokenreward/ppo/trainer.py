"""PPO with dense rewards on [`~transformers.Trainer`]'s own loop."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    is_wandb_available,
    set_seed,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import speed_metrics
from transformers.utils import logging

from .._trl import BaseTrainer, PPOConfig, PPOTrainer
from ..data.dropped import DroppedRows
from ..data.vocabulary import check_ids, warn_of_other_tokenizer
from ..nn.finite import check_weights, not_finite
from ..nn.modules import vocab_size, without_peft
from ..nn.precision import warn_of_narrow_weights
from ..nn.sharding import check_sharding, full_state_dict, is_fsdp2, keep_head, shard_frozen
from ..utils.checkpoints import begin_checkpoint, checkpoint_to_resume
from ..utils.model_card import correct_card, policy_example
from ..utils.paper import PAPER
from ..utils.validation import check_devices, check_tokenizer
from .adaptation import FILE as ADAPTIVE_STATE_FILE
from .adaptation import AdaptiveState
from .batches import packed_groups
from .callbacks import UpdateCallback
from .checkpointing import load_models, load_sharded_optimizer, save_models, save_sharded_optimizer
from .collector import RolloutCollector
from .completion_log import CompletionLog
from .config import FineGrainedPPOConfig
from .evaluation import EvalDataset, completion_table, evaluate, print_table, select_dataset
from .forward import PolicyAndValue
from .functional import policy_losses, value_losses
from .inference import Inference
from .metrics import RolloutMetrics, StepStatistics, rollout_metrics
from .models import check_given, check_optimizer, prepare_models
from .prompts import REMEDIES, DataCollator, DataCollatorForPrompts, PromptSource, prepare_prompts
from .reward_functions import RewardFunction
from .reward_hacking import RewardHackingCallback
from .rewards import make_rewards
from .rollout import Rollout
from .sampling import check_device
from .schedule import Schedule, trainer_arguments
from .vllm import VLLMEngine


if is_wandb_available():
    import wandb

logger = logging.get_logger(__name__)


class FineGrainedPPOTrainer(PPOTrainer):
    """
    Trainer for Proximal Policy Optimization with dense, per-token rewards.

    It replaces TRL's `PPOTrainer` in a script, and is a subclass of it where TRL has one. It runs on
    [`~transformers.Trainer`]'s own loop: its data loader is a series of updates, each of which collects completions and
    yields them in shuffled mini-batches `num_ppo_epochs` times. The Trainer does optimization, gradient clipping, mixed
    precision, gradient checkpointing, callbacks, logging and checkpoints.

    Args:
        args ([`FineGrainedPPOConfig`]):
            Training arguments. TRL's own `PPOConfig` is taken too. They are copied, never written to.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy. Its pad token may be its EOS.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy: a causal language model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference of the KL penalty. If `None`, the policy as it is passed: a copy of it, or, where it has an
            adapter, a copy of the adapter named `"ref"`. With `peft_config`, the policy without the new adapter.
        reward_model ([`TokenRewardModel`], [`ImplicitReward`], [`~transformers.PreTrainedModel`], `Callable`, or a
            list of them):
            What scores completions: a [`TokenRewardModel`], an [`ImplicitReward`] or a token classifier with one label
            (dense), a sequence classifier with one label, or a function (see
            [`~ppo.completion_scorer.CompletionScorer`]) that returns a float or one float per token for each
            completion. Of several, `reward_weights`, `reward_settings` and `reward_aggregation` say what each counts.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, in a column `input_ids` (tokens) or `prompt` (a text or messages), or preference rows, see
            [`~ppo.prompts.prepare_prompts`]. A stream needs `total_episodes` or `max_steps`.
        value_model ([`TokenRewardModel`] or [`~transformers.PreTrainedModel`], *optional*):
            Its sequence head gives the values. If `None`, a copy of the first reward model that has such a head and the
            policy's tokenizer, or, where there is none, of the policy's backbone, in float32; its values begin at 0,
            since a reward model's scores have another scale than returns.
        data_collator (`Callable`, *optional*):
            Makes left-padded `input_ids` and `attention_mask` of a list of rows. If `None`,
            [`~ppo.prompts.DataCollatorForPrompts`].
        eval_dataset ([`~datasets.Dataset`] or `dict` of [`~datasets.Dataset`], *optional*):
            Prompts for `evaluate` and `generate_completions`.
        optimizers (`tuple`, *optional*):
            Optimizer and learning rate scheduler, as in [`~transformers.Trainer`]. The optimizer's parameters are those
            of the policy and the value model, which is then passed too, as the policy is in its adapter.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Wraps the policy in an adapter.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`] or a list of them, *optional*):
            Tokenizer of the reward model where it is not the policy's. Of several rewards, a list with one for each,
            `None` for those with the policy's and for functions.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole mini-batch.

    adaptive: AdaptiveState
    control: TrainerControl
    _collector_class = RolloutCollector

    _tag_names = ["trl", "ppo", "fine-grained-ppo"]
    _name = "FineGrainedPPO"
    _paper = PAPER

    def __init__(
        self,
        args: FineGrainedPPOConfig | PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: nn.Module | RewardFunction | Sequence[nn.Module | RewardFunction] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        value_model: nn.Module | None = None,
        data_collator: DataCollator | None = None,
        eval_dataset: EvalDataset | dict[str, EvalDataset] | None = None,
        # less commonly used
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
    ) -> None:
        if train_dataset is None:
            raise ValueError("`train_dataset` is required.")
        check_given(model, ref_model, reward_model, value_model)
        if not isinstance(args, FineGrainedPPOConfig):
            args = FineGrainedPPOConfig.from_ppo_config(args)
        check_device(args.device)
        check_tokenizer(processing_class, "processing_class")
        _set_pad_token(processing_class)
        self.stop_token_id = args.find_stop_token(processing_class.eos_token_id)

        self._vocab_size = vocab_size(model)
        warn_of_other_tokenizer(processing_class, self._vocab_size, "`model`")
        self._dropped: dict[str, DroppedRows] = {}
        train_dataset = self._prepare_prompts(train_dataset, processing_class, args, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: self._prepare_prompts(part, processing_class, args, f"eval_{name}")
                for name, part in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self._prepare_prompts(eval_dataset, processing_class, args, "eval")
        if data_collator is None:
            data_collator = DataCollatorForPrompts(processing_class.pad_token_id)

        # New heads and adapters are random, so the seed comes first.
        set_seed(args.seed)
        self.rewards = make_rewards(reward_model, processing_class, reward_processing_class, args)
        self.rewards.check_calls(train_dataset.column_names or ())
        args = args.with_defaults_of(self.rewards.kinds)
        self.models = prepare_models(args, model, ref_model, self.rewards, value_model, peft_config)
        check_optimizer(optimizers[0], self.models)
        self.policy_model, self.value_model, self.ref_model = self.models[:3]
        self.reward_model = reward_model

        self.schedule = Schedule.plan(args, train_dataset)
        args = trainer_arguments(args, self.schedule)
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.prompt_source = PromptSource(train_dataset, self.schedule.batch_size, data_seed)
        self.rollout_metrics, self.step_statistics = RolloutMetrics(), StepStatistics()
        self._reset_state(args)

        # PPOTrainer.__init__ is left out on purpose: it builds a training loop of its own.
        BaseTrainer.__init__(
            self,
            model=PolicyAndValue(self.policy_model, self.value_model),
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
            callbacks=callbacks,
        )
        check_devices(self.args)
        check_sharding(self.accelerator, args.ds3_gather_for_generation)
        warn_of_narrow_weights({"model": self.policy_model, "value_model": self.value_model}, self.accelerator)
        keep_head(self.model, without_peft(self.policy_model).get_output_embeddings(), self.accelerator)
        for module in self.models.frozen:
            shard_frozen(module, self.accelerator)
        self.model.add_model_tags(self._tag_names)
        self._add_own_callbacks()
        self.collector = self._make_collector()
        if type(data_collator) is DataCollatorForPrompts:  # another may shorten prompts
            for name, part in {"train": train_dataset, **self._eval_parts()}.items():
                self._check_fits(part, name)

    @property
    def dropped(self) -> dict[str, dict[str, int]]:
        """For each data set (`"train"`, `"eval"` or `"eval_<name>"`): its `rows`, those `kept`, and those dropped
        because their prompts are `too_long` (`max_prompt_length`). The counts of a stream grow as it is read, and are
        those of this process."""
        return {name: dropped.counts() for name, dropped in self._dropped.items()}

    def _prepare_prompts(
        self, dataset: EvalDataset, tokenizer: PreTrainedTokenizerBase, args: FineGrainedPPOConfig, name: str
    ) -> EvalDataset:
        dropped = self._dropped[name] = DroppedRows(REMEDIES)
        dataset = prepare_prompts(dataset, tokenizer, name, args.dataset_num_proc, args.max_prompt_length, dropped)
        if dropped.counts()["too_long"]:
            logger.warning(f"Data set {name}: {dropped.describe()}.")
        return check_ids(dataset, ["input_ids"], self._vocab_size, name)

    def _eval_parts(self) -> dict[str, EvalDataset]:
        """The evaluation sets by the names that errors and counts call them."""
        if isinstance(self.eval_dataset, dict):
            return {f"eval_{name}": part for name, part in self.eval_dataset.items()}
        return {} if self.eval_dataset is None else {"eval": self.eval_dataset}

    def _check_fits(self, dataset: EvalDataset, name: str) -> None:
        if isinstance(dataset, Dataset):  # the prompts of a stream are checked as they are read
            lengths = [len(ids) for ids in dataset["input_ids"]]
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            row = f"row {longest}" if len(dataset) == self.dropped[name]["rows"] else f"row {longest} of those kept"
            self.collector.check_fits(lengths[longest], f"The prompt in {row} of the {name} data set")

    def _add_own_callbacks(self) -> None:
        self.add_callback(UpdateCallback(self))
        if not any(isinstance(callback, RewardHackingCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(RewardHackingCallback())
        self.completion_log = None
        if self.args.log_completions:
            self.completion_log = CompletionLog(self, self.args.num_completions_to_log)
            self.add_callback(self.completion_log)

    def _make_collector(self) -> RolloutCollector:
        args, tokenizer, accelerator = self.args, self.processing_class, self.accelerator
        vllm_engine = None
        if args.use_vllm:
            rows = max(self.schedule.local_batch_size, args.per_device_eval_batch_size)
            vllm_engine = VLLMEngine(self.policy_model, tokenizer, accelerator, args, self.stop_token_id, rows)
        return self._collector_class(
            Inference(self.models, args, accelerator, lambda: self.model, lambda: self.model_wrapped),
            self.rewards,
            tokenizer,
            self.data_collator,
            args,
            accelerator,
            self.stop_token_id,
            vllm_engine,
        )

    # --- one update ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Iterator[dict[str, Any]]:
        """This process's shares of the mini-batches, from the first update that the trainer's state has not seen."""
        for update in range(self.state.global_step // self.schedule.steps_per_update, self.schedule.num_updates):
            rollout = self.collect_rollout(update)
            self.adaptive = self.adaptive.after(rollout, self.args)
            for rows in self.schedule.mini_batches(self.args.seed, update):
                yield {"groups": packed_groups(rollout, rows, self.accelerator, self.args.per_device_train_batch_size)}

    def collect_rollout(self, update: int) -> Rollout:
        """Sample completions, score them, compute their advantages, and record metrics.

        Args:
            update (`int`):
                The number of the update, from 0. The samples follow from it and the seed.

        Returns:
            [`~ppo.rollout.Rollout`]: the whole batch, on every process.
        """
        rollout, metrics = self.collector.collect(update, self.prompt_source, self.adaptive)
        self.rollout_metrics.add(metrics)
        self.rollout_metrics.add(rollout_metrics(rollout, self.adaptive.kl_coef, self.processing_class.eos_token_id))
        if self.completion_log is not None:
            self.completion_log.collect_rollout(update, rollout)
        return rollout

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The gradients of one mini-batch, and its loss. Groups, and their parts, go one after the other, so memory is
        needed for one alone."""
        parts = self.accelerator.unwrap_model(model).parts(self.accelerator)
        *passes, last = [{**group, "part": part} for group in inputs["groups"] for part in parts]
        synchronised = self.accelerator.sync_gradients
        loss = torch.zeros((), device=self.accelerator.device)
        for one in passes:
            self.accelerator.gradient_state._set_sync_gradients(False)
            # DeepSpeed's engine looks at the flag alone. FSDP would keep the gradients of all weights whole.
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            with nullcontext() if sharded else self.accelerator.no_sync(model):
                loss += BaseTrainer.training_step(self, model, one, num_items_in_batch)
        self.accelerator.gradient_state._set_sync_gradients(synchronised)
        loss += BaseTrainer.training_step(self, model, last, num_items_in_batch)
        self._check_losses(self.step_statistics.end_step(self.accelerator))
        return loss

    def _check_losses(self, statistics: dict[str, Tensor]) -> None:
        """Raise before the optimizer's step, on every process, where a loss is NaN or infinite. Trainer would log the
        losses before it instead."""
        names = {"the loss of `model`": "loss/policy_avg", "the loss of `value_model`": "loss/value_avg"}
        step, per_update = self.state.global_step, self.schedule.steps_per_update
        where = f"Update {step // per_update}, optimizer step {step}"
        if problem := not_finite(where, {name: statistics[key] for name, key in names.items()}):
            raise ValueError(problem)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """PPO's loss of one group, or of its part: its share of the mean over the tokens of the mini-batch."""
        if return_outputs:
            raise ValueError("PPO's loss has no outputs to return; call `evaluate` for metrics.")
        args, old_logps, advantages = self.args, inputs["old_per_token_logps"], inputs["advantages"]

        def policy_loss(logps: Tensor, tokens: slice) -> Tensor:
            return policy_losses(logps, old_logps[tokens], advantages[tokens], args.cliprange)[0]

        ids, columns = inputs["input_ids"], inputs["columns"]
        policy, values = model(ids, columns, args.temperature, policy_loss, inputs.get("part", "both"))
        token_sums: dict[str, Tensor] = {}
        if policy is not None:
            _, clipped, ratio = policy_losses(policy.per_token_logps, old_logps, advantages, args.cliprange)
            token_sums |= {
                "loss/policy_avg": policy.loss,
                "policy/approxkl_avg": 0.5 * (policy.per_token_logps - old_logps).square().sum(),
                "policy/clipfrac_avg": clipped.sum(),
                "policy/entropy_avg": policy.entropies.sum(),
                "val/ratio": ratio.sum(),
                "val/ratio_square": ratio.square().sum(),
            }
        if values is not None:
            losses, clipped = value_losses(values, inputs["old_values"], inputs["returns"], args.cliprange_value)
            token_sums |= {"loss/value_avg": losses.sum(), "val/clipfrac_avg": clipped.sum()}
        shares = {name: x / inputs["num_tokens"] for name, x in token_sums.items()}
        self.step_statistics.add(shares)
        factors = {"loss/policy_avg": 1.0, "loss/value_avg": args.vf_coef}
        loss = torch.stack([factors[name] * shares[name] for name in factors if name in shares]).sum()
        # DDP averages the gradients of the processes, whose shares add up to the mean.
        return loss * self.accelerator.num_processes

    # --- logging and evaluation ------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the rollouts and steps since the last log to the Trainer's own."""
        if "loss" in logs:
            logs.update(self.rollout_metrics.pop())
            if isinstance(self.train_dataset, IterableDataset) and self.args.max_prompt_length is not None:
                logs["dropped/too_long"] = self.dropped["train"]["too_long"]
            schedule, step = self.schedule, self.state.global_step
            # An update's completions are all collected before its first step.
            logs["episode"] = -(-step // schedule.steps_per_update) * schedule.batch_size
            logs.update(self.step_statistics.pop())
            logs["lr"] = logs["learning_rate"]
            if start_time is not None:
                updates = (step - self._initial_global_step) / schedule.steps_per_update
                logs["eps"] = updates * schedule.batch_size / (time.time() - start_time)
        BaseTrainer.log(self, logs, start_time)

    def evaluate(
        self,
        eval_dataset: EvalDataset | dict[str, EvalDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample a completion for every evaluation prompt and report its score, KL and length.

        The scores are raw: neither shaped nor spread, so that they compare between configurations. The KL is that of
        the sampled completions at the training temperature.

        Returns:
            `dict[str, float]`: `{prefix}_objective/scores`, `{prefix}_objective/kl`,
            `{prefix}_completions/mean_length`, `{prefix}_completions/ended` and the run time. For a `dict` of data
            sets, the prefix gets the name of each.
        """
        dataset = select_dataset(eval_dataset, self.eval_dataset, "`evaluate`")
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return metrics
        start_time = time.time()
        if not any(dataset is part for part in self._eval_parts().values()):
            dataset = self._prepare_prompts(dataset, self.processing_class, self.args, metric_key_prefix)
        means, num_samples = evaluate(self.collector, dataset, self._eval_temperature)
        metrics = {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=num_samples))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> Any:
        """Print completions of the evaluation prompts with their scores, and log them to wandb where it is on.

        Args:
            sampling (`bool`, *optional*, defaults to `False`):
                Whether to stop after the first batch of each data set.

        Returns:
            `pandas.DataFrame`: Columns `query`, `model response` and `score`; all rows on every process. `None` where
            there is no evaluation data set.
        """
        if self.eval_dataset is None:
            return None
        datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        df = completion_table(self.collector, list(datasets), self._eval_temperature, sampling)
        if self.accelerator.is_main_process:
            print_table(df.head(5))
            if "wandb" in self.args.report_to and wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=df)})
        return df

    @property
    def _eval_temperature(self) -> float:
        return self.args.temperature if self.args.eval_temperature is None else self.args.eval_temperature

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """[`~transformers.Trainer.train`]. `resume_from_checkpoint` continues exactly where the checkpoint was
        written; `True` selects the last one that is whole."""
        self._reset_state(self.args)
        checkpoint = checkpoint_to_resume(self, resume_from_checkpoint, needed=[ADAPTIVE_STATE_FILE])
        output = BaseTrainer.train(self, checkpoint, *args, **kwargs)
        check_weights(self)
        return output

    def _reset_state(self, args: FineGrainedPPOConfig) -> None:
        """Discard the state of an earlier or interrupted run."""
        self.adaptive = AdaptiveState.start(args)
        self.rollout_metrics.pop()
        self.step_statistics.clear()
        self._ends_update = self._save_is_due = self._stop_is_due = False

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Between two updates there is nothing to keep but weights, optimizer and counters; within one, there would be a
        # rollout. So a checkpoint that falls due within an update is written at its end, and so is one that a callback
        # writes by itself, since an update begins before callbacks hear of it.
        self._ends_update = self.state.global_step % self.schedule.steps_per_update == 0
        self._save_is_due |= self.control.should_save
        self.control.should_save = self._save_is_due and self._ends_update
        self.control.should_log |= self.control.should_save  # a checkpoint holds no metrics that wait to be logged
        BaseTrainer._maybe_log_save_evaluate(self, *args, **kwargs)
        self._ends_update = False
        self._stop_is_due |= self.control.should_training_stop or self.control.should_epoch_stop
        self.control.should_training_stop = self._stop_is_due and not self._save_is_due
        self.control.should_epoch_stop = False  # the run is one epoch

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and the tokenizer to `output_dir`, and the value model to its folder `value_model`."""
        check_weights(self)
        if not is_fsdp2(self.accelerator):
            BaseTrainer.save_model(self, output_dir, _internal_call)
            return
        # Trainer would save nothing unless the state dict type is FULL_STATE_DICT.
        self._save(output_dir, full_state_dict(self.model))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        output_dir = self.args.output_dir if output_dir is None else output_dir
        save_models(self.accelerator.unwrap_model(self.model), output_dir, state_dict)
        self.processing_class.save_pretrained(output_dir)
        torch.save(self.args, Path(output_dir, TRAINING_ARGS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_models(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            BaseTrainer._load_best_model(self)
            return
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            self.adaptive.save(output_dir)
        if is_fsdp2(self.accelerator):
            optimizer = self.optimizer.optimizer
            save_sharded_optimizer(output_dir, self.model, optimizer, self.lr_scheduler, self.args.should_save)
        else:
            BaseTrainer._save_optimizer_and_scheduler(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.adaptive = AdaptiveState.load(checkpoint, self.args)
        if checkpoint is not None and is_fsdp2(self.accelerator):
            load_sharded_optimizer(checkpoint, self.model, self.optimizer.optimizer, self.lr_scheduler)
        else:
            BaseTrainer._load_optimizer_and_scheduler(self, checkpoint)

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(model_name, *args, **kwargs)
        correct_card(self, policy_example, model_name)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._save_is_due = not self._ends_update
        if self._save_is_due:
            return
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else Path(self.args.output_dir).name
        self.create_model_card(model_name=name)
        begin_checkpoint(self, trial)
        BaseTrainer._save_checkpoint(self, model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        BaseTrainer._save_rng_state(self, output_dir)
        self.accelerator.wait_for_everyone()  # The state, which makes the checkpoint count as whole, comes next.


def _set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has neither a pad token nor an EOS token to pad with: set `processing_class.pad_token`."
            )
        tokenizer.pad_token = tokenizer.eos_token
