import json
import math
import os
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, is_wandb_available, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import speed_metrics

from .._trl import BaseTrainer, PPOConfig, PPOTrainer, disable_dropout_in_model
from ..nn.masked import masked_mean, masked_sum, masked_whiten
from ..nn.modules import check_own_forward, independent_copy, without_peft
from ..nn.sharding import (
    check_sharding,
    copied,
    distributed_like,
    full_optimizer_state_dict,
    full_state_dict,
    gathered,
    is_fsdp2,
    keep_head,
    load_optimizer_state_dict,
    shard_frozen,
    unsharded,
)
from ..nn.unpadding import group_sizes, groups_by_length, right_packed, state_columns
from ..reward_model.modeling import TokenRewardModel
from ..reward_model.readout import check_adapter, check_scorer, has_sequence_score
from .completion_log import CompletionLog
from .completion_scorer import CompletionScorer, RewardFunction
from .config import FineGrainedPPOConfig
from .forward import PolicyAndValue, completion_logps, completion_values
from .functional import (
    adapted_kl_coef,
    correlation,
    gae,
    hold_mean_length,
    kl_per_token,
    mean_length,
    policy_losses,
    repeated_ngrams,
    token_level_rewards,
    value_losses,
)
from .prompts import DataCollatorForPrompts, Prompts, PromptSource, join, prepare_prompts
from .reward_hacking import RewardHackingCallback
from .rollout import Completions, Rollout
from .sampling import generate, uniforms
from .vllm import VLLMEngine


if is_wandb_available():
    import wandb

_VALUE_MODEL_FOLDER = "value_model"
# What is adapted from update to update, and the file of a checkpoint that holds it.
_ADAPTED = ("kl_coef", "length_target")
_ADAPTED_FILE = "adapted.json"
# First entries of the seeds of what is drawn, so that the streams of random numbers never meet.
_SAMPLING, _MINI_BATCHES, _EVALUATION = range(3)


class FineGrainedPPOTrainer(PPOTrainer):
    """
    Trainer for Proximal Policy Optimization with dense, per-token rewards.

    It takes the place of TRL's `PPOTrainer` (of which it is a subclass where TRL has one) in a script as it is, and runs on
    [`~transformers.Trainer`]'s own loop: the training "data set" is an endless series of updates, each of which collects
    completions and yields them in shuffled micro-batches `num_ppo_epochs` times. Optimizer, gradient clipping, mixed
    precision, gradient checkpointing, callbacks, logging and checkpoints are the Trainer's.

    Args:
        args ([`FineGrainedPPOConfig`]):
            Training arguments. TRL's own `PPOConfig` is taken too. They are copied, never written to.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy. Its pad token may be its EOS.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy: a causal language model.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference of the KL penalty. If `None`: a copy of the policy, or the policy without its adapter where it has
            one.
        reward_model ([`TokenRewardModel`], [`~transformers.PreTrainedModel`] or `Callable`):
            What scores completions: a [`TokenRewardModel`] or a token classifier with one label (dense), a sequence
            classifier with one label, or a function (see [`~ppo.completion_scorer.CompletionScorer`]) that returns a float or one float
            per token for each completion.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, in a column `input_ids` (tokens) or `prompt` (a text or messages). A stream needs `total_episodes` or
            `max_steps`.
        value_model ([`TokenRewardModel`] or [`~transformers.PreTrainedModel`], *optional*):
            Its sequence head gives the values. If `None`, a copy of the reward model; where that is a function or has
            another tokenizer, the policy's backbone with a new head.
        data_collator (`Callable`, *optional*):
            Makes left-padded `input_ids` and `attention_mask` of a list of rows. If `None`,
            [`~ppo.prompts.DataCollatorForPrompts`].
        eval_dataset ([`~datasets.Dataset`] or `dict` of [`~datasets.Dataset`], *optional*):
            Prompts for `evaluate` and `generate_completions`.
        optimizers (`tuple`, *optional*):
            Optimizer and learning rate scheduler, as in [`~transformers.Trainer`]. The optimizer's parameters are those of
            the policy and the value model.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Wraps the policy in an adapter.
        reward_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the reward model where it is not the policy's.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole mini-batch.

    _tag_names = ["trl", "ppo", "fine-grained-ppo"]
    _name = "FineGrainedPPO"
    _paper = {
        "title": "Aligning Large Language Models via Fine-grained Supervision",
        "id": "2406.02756",
        "citation": textwrap.dedent("""\
            @inproceedings{xu2024aligning,
                title     = {{Aligning Large Language Models via Fine-grained Supervision}},
                author    = {Dehong Xu and Liang Qiu and Minseok Kim and Faisal Ladhak and Jaeyoung Do},
                year      = 2024,
                booktitle = {Proceedings of the 62nd Annual Meeting of the Association for Computational Linguistics (Volume 2: Short Papers)},
                pages     = {673--680},
            }"""),
    }

    def __init__(
        self,
        args: FineGrainedPPOConfig | PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: nn.Module | RewardFunction | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        value_model: nn.Module | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]] | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        # less commonly used
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if train_dataset is None:
            raise ValueError("`train_dataset` is required.")
        if reward_model is None:
            raise ValueError("`reward_model` is required: a model, or a function that scores completions.")
        if ref_model is model:
            raise ValueError("`model` and `ref_model` are one object: pass `ref_model=None` to have it copied.")
        if value_model is not None and value_model is reward_model:
            raise ValueError(
                "`value_model` and `reward_model` are one object: pass `value_model=None` to have it copied."
            )
        given = {"model": model, "ref_model": ref_model, "reward_model": reward_model, "value_model": value_model}
        for argument, module in given.items():
            if isinstance(module, nn.Module):
                check_own_forward(module, argument)
        if not isinstance(args, FineGrainedPPOConfig):
            args = FineGrainedPPOConfig.from_ppo_config(args)

        # Processing class
        if processing_class.pad_token_id is None:
            processing_class.pad_token = processing_class.eos_token
        if args.stop_token == "eos" and processing_class.eos_token_id is None:
            raise ValueError("`stop_token='eos'`, but the tokenizer has no EOS token.")
        self.stop_token_id = processing_class.eos_token_id if args.stop_token == "eos" else args.stop_token_id

        # Data
        train_dataset = prepare_prompts(train_dataset, processing_class, "train", args.dataset_num_proc)
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: prepare_prompts(dataset, processing_class, name, args.dataset_num_proc)
                for name, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = prepare_prompts(eval_dataset, processing_class, "eval", args.dataset_num_proc)
        if data_collator is None:
            data_collator = DataCollatorForPrompts(processing_class.pad_token_id)

        # Reward, value and reference models. New heads and adapters are random, so the seed comes first.
        set_seed(args.seed)
        with gathered(reward_model):
            self.scorer = CompletionScorer(
                reward_model,
                processing_class,
                reward_processing_class,
                args.reward_signal,
                args.reward_density,
                args.local_rollout_forward_batch_size,
            )
        if args.average_token_scores and self.scorer.signal == "sequence_score":
            raise ValueError(
                "`average_token_scores` has no effect on a sequence score, and the reward model gives no other."
            )
        is_model = isinstance(reward_model, nn.Module)
        if args.token_score_transform == "log_sigmoid" and self.scorer.signal == "sequence_score":
            raise ValueError("`token_score_transform` has no effect on a sequence score.")
        # From here on `args` is the trainer's own: what was left to the reward model, and what Trainer's loop has to know in
        # its own terms, is written to the copy.
        args = args.with_reward_defaults(scores_tokens=is_model and self.scorer.signal == "token_scores")
        # What `sequence_score_coef` adds to token scores.
        self.sequence_scorer = None
        if args.sequence_score_coef > 0:
            if self.scorer.signal != "token_scores" or not has_sequence_score(reward_model):
                raise ValueError(
                    "`sequence_score_coef` adds the sequence score of a reward model to its token scores: `reward_model` must "
                    "be a TokenRewardModel, and `reward_signal` 'token_scores' or unset."
                )
            self.sequence_scorer = CompletionScorer(
                reward_model,
                processing_class,
                reward_processing_class,
                "sequence_score",
                "sequence",
                args.local_rollout_forward_batch_size,
            )
        self.reward_model = reward_model
        if value_model is None:
            readable = self.scorer.reward_processing_class is None
            usable = is_model and readable and has_sequence_score(reward_model)
            value_model = copied(reward_model if usable else model, TokenRewardModel.from_backbone)
        check_scorer(value_model, "value_model")
        if not has_sequence_score(value_model):
            raise ValueError("`value_model` has no sequence head to give values: pass a TokenRewardModel or a sequence "
                             "classifier, or `None`.")  # fmt: skip
        if isinstance(without_peft(value_model), TokenRewardModel):
            # Values come from the sequence head. DDP demands a gradient for every parameter that can have one.
            without_peft(value_model).token_score.requires_grad_(False)
        if peft_config is not None:
            from peft import get_peft_model

            if is_peft_model(model):
                raise ValueError(
                    "`model` has an adapter already, so `peft_config` would add a second: pass one of them."
                )
            model = get_peft_model(model, peft_config)
        check_adapter(model, "model")
        if ref_model is not None:
            check_adapter(ref_model, "ref_model")
        if args.ref_adapter_name is not None:
            _choose_adapters(args, model, ref_model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("`model` has nothing to train: load its adapter with `is_trainable=True`.")
        for trained in (model, value_model):
            if is_peft_model(trained) and args.gradient_checkpointing:
                trained.enable_input_require_grads()
        if ref_model is None and not is_peft_model(model):
            ref_model = copied(model, independent_copy)
        self.policy_model, self.value_model, self.ref_model = model, value_model, ref_model
        self.frozen_models = [m for m in (ref_model, reward_model) if isinstance(m, nn.Module)]
        for module in (model, value_model, *self.frozen_models):
            _disable_dropout(module)
        for module in self.frozen_models:
            module.requires_grad_(False).eval()

        # Batches
        args.world_size = args.distributed_state.num_processes
        args.micro_batch_size = args.per_device_train_batch_size * args.world_size
        args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args.batch_size = args.local_batch_size * args.world_size
        args.local_mini_batch_size = _exact_division(args.local_batch_size, args.num_mini_batches)
        args.mini_batch_size = args.local_mini_batch_size * args.world_size
        self.steps_per_update = args.num_ppo_epochs * args.num_mini_batches
        args.num_total_batches = _number_of_updates(args, train_dataset, self.steps_per_update)
        args.total_episodes = args.num_total_batches * args.batch_size
        args.max_steps = args.num_total_batches * self.steps_per_update
        _check_best_model(args, self.steps_per_update)
        # `training_step` takes a whole mini-batch, whose rows it groups by length.
        args.gradient_accumulation_steps = 1
        # The rows of an update follow from its number, so there is nothing to skip when a run is resumed.
        args.ignore_data_skip = True
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.prompt_source = PromptSource(train_dataset, args.batch_size, data_seed)

        self._forget_adaptation(args)
        # The trainer's state that checkpoints do not hold: it is empty whenever one is written.
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._forget_step_statistics()
        self._save_is_due = False

        # PPOTrainer.__init__ is left out on purpose: it builds a training loop of its own.
        BaseTrainer.__init__(
            self,
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            optimizers=optimizers,
            callbacks=callbacks,
        )
        check_sharding(self.accelerator, args.ds3_gather_for_generation)
        keep_head(self.model, without_peft(model).get_output_embeddings(), self.accelerator)
        self.add_callback(_UpdateCallback(self))
        if not any(isinstance(callback, RewardHackingCallback) for callback in self.callback_handler.callbacks):
            self.add_callback(RewardHackingCallback())
        self.completion_log = None
        if args.log_completions:
            self.completion_log = CompletionLog(self, args.num_completions_to_log)
            self.add_callback(self.completion_log)
        for module in self.frozen_models:
            shard_frozen(module, self.accelerator)
        self.model.add_model_tags(self._tag_names)
        self.vllm_engine = None
        if args.use_vllm:
            self.vllm_engine = VLLMEngine(model, processing_class, self.accelerator, args, self.stop_token_id)

    # --- one update ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Iterator[dict[str, Any]]:
        """This process's shares of the mini-batches, from the first update that the trainer's state has not seen."""
        for update in range(self.state.global_step // self.steps_per_update, self.args.num_total_batches):
            rollout = self._collect_rollout(update)
            self._log_rollout(rollout)
            if self.completion_log is not None:
                self.completion_log.collect(update, rollout)
            self._adapt(rollout)
            for epoch in range(self.args.num_ppo_epochs):
                # Every process holds the whole rollout and draws the same order, so that which rows make a mini-batch
                # does not depend on the number of processes.
                order = np.random.default_rng([_MINI_BATCHES, self.args.seed, update, epoch]).permutation(
                    self.args.batch_size
                )
                for rows in order.reshape(-1, self.args.mini_batch_size):
                    yield {"groups": self._groups(rollout, torch.from_numpy(rows))}

    def _adapt(self, rollout: Rollout) -> None:
        """What the next update takes from this one: the coefficient of the KL penalty."""
        if self.args.kl_target is not None:
            kl = float(masked_sum(rollout.kl, rollout.completion_mask, dim=1).mean())
            self._kl_coef = adapted_kl_coef(self._kl_coef, kl, self.args.kl_target, least=self.args.kl_coef)

    def _collect_rollout(self, update: int) -> Rollout:
        """Sample completions, score them and work out their advantages."""
        if self.vllm_engine is not None:
            self.vllm_engine.sync()
        rows = self.prompt_source.rows(update)
        local = self._local_rows(len(rows))
        rows = [rows[i] for i in local]
        prompts = self._collate(rows)
        seed = (_SAMPLING, self.args.seed, update)
        completions = self._generate(prompts, uniforms(seed, local, self.args.response_length), self.args.temperature)
        if self.vllm_engine is not None or self.accelerator.mixed_precision != "no":
            # At low precision a full pass and cached decoding differ by more than rounding, as do vLLM and transformers at
            # any: PPO's ratio would not start at 1.
            logps = self._policy_logps(prompts, completions)
            if self.vllm_engine is not None:
                self._log_sampling_difference(completions, logps)
            completions = completions._replace(per_token_logps=logps)
        collected = self._gather(prompts, completions, *self._read(prompts, completions, rows))
        return self._with_advantages(*collected)

    def _read(self, prompts: Prompts, completions: Completions, rows: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        """What the reference, the value and the reward model say of completions: log-probabilities and values, (B, T), the
        values of the final states, (B,), raw scores, (B, T), and, with a `sequence_score_coef`, raw sequence scores."""
        input_ids, attention_mask = join(prompts, completions.ids, completions.mask)
        length = completions.ids.shape[1]
        values = torch.zeros(completions.mask.shape, device=input_ids.device)
        final_values = torch.zeros(len(input_ids), device=input_ids.device)
        # One model after the other, so that the whole weights of no more than one are needed at a time.
        with self._reference_policy() as reference:
            ref_per_token_logps = self._completion_logps(reference, prompts, completions)
        with self._evaluation_mode(self.value_model) as value_model:
            for group in self._forward_groups(attention_mask):
                batch = input_ids[group], attention_mask[group], length
                values[group], final_values[group] = completion_values(value_model, *batch)
        with self._evaluation_mode(self.reward_model):
            scorers = [self.scorer] if self.sequence_scorer is None else [self.scorer, self.sequence_scorer]
            scores = [s.raw_scores(prompts, completions.ids, completions.mask, rows) for s in scorers]
        return ref_per_token_logps, values, final_values, *scores

    def _completion_logps(self, policy: nn.Module, prompts: Prompts, completions: Completions) -> Tensor:
        """Log-probabilities, (B, T), that a policy in [`_evaluation_mode`] gives to completions."""
        input_ids, attention_mask = join(prompts, completions.ids, completions.mask)
        length, logps = completions.ids.shape[1], torch.zeros(completions.mask.shape, device=input_ids.device)
        for group in self._forward_groups(attention_mask):
            batch = input_ids[group], attention_mask[group], length
            logps[group] = completion_logps(policy, *batch, self.args.temperature)
        return logps

    def _forward_groups(self, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Rows of like length, for passes without gradients."""
        return groups_by_length(attention_mask.sum(1), self.args.local_rollout_forward_batch_size)

    def _with_advantages(
        self,
        prompts: Prompts,
        completions: Completions,
        ref_per_token_logps: Tensor,
        values: Tensor,
        final_values: Tensor,
        scores: Tensor,
        sequence_scores: Tensor | None = None,
    ) -> Rollout:
        """From raw scores of the whole batch to advantages and returns."""
        args, mask = self.args, completions.mask
        raw_token_scores = scores * mask
        shaping = {"scale": args.reward_scale, "center": args.center_rewards, "clip": args.reward_clip}
        scores = self.scorer.spread(
            scores,
            completions.ids,
            mask,
            **shaping,
            log_sigmoid=args.token_score_transform == "log_sigmoid",
            average=args.average_token_scores,
        )
        if sequence_scores is not None:
            spread = self.sequence_scorer.spread(sequence_scores, completions.ids, mask, **shaping)
            scores = scores + args.sequence_score_coef * spread
        if args.missing_eos_penalty is not None:
            last = (mask.sum(1) - 1).long()
            scores[torch.arange(len(last)), last] -= args.missing_eos_penalty * ~completions.ended
        kl = kl_per_token(completions.per_token_logps, ref_per_token_logps, args.kl_estimator) * mask
        rewards = token_level_rewards(scores, kl, mask, self._kl_coef)
        if args.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        bootstrap = final_values * ~completions.ended if args.bootstrap_truncated else None
        advantages, returns = gae(rewards, values, mask, args.gamma, args.lam, bootstrap)
        if args.hold_length:
            if self._length_target is None:  # the first update's
                self._length_target = mean_length(mask)
            advantages, bonus = hold_mean_length(advantages, mask, self._length_target)
            self._metrics["objective/length_bonus"].append(bonus)
        return Rollout(
            *prompts,
            completions.ids,
            mask,
            completions.ended,
            completions.per_token_logps,
            ref_per_token_logps,
            values,
            final_values,
            raw_token_scores.sum(1),
            raw_token_scores,
            scores,
            kl,
            rewards,
            masked_whiten(advantages, mask),
            returns,
        )

    def _groups(self, rollout: Rollout, rows: Tensor) -> list[dict[str, Any]]:
        """This process's share of one mini-batch in groups of rows of like length, packed: what a completion token has is
        in flat tensors, (N,), row by row.

        Every process has as many groups as the others, and rows of much the same lengths.
        """
        lengths = (rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)).cpu()
        rows = rows[lengths[rows].argsort(descending=True, stable=True)]
        processes, args = self.accelerator.num_processes, self.args
        # The sorted rows are dealt out in turn; in each round the first process gets the longest.
        longest = lengths[rows[::processes]].tolist()
        sizes = group_sizes(longest, args.per_device_train_batch_size, rollout.returns.device.type)
        num_tokens = rollout.completion_mask[rows].sum()
        groups = []
        for group in rows[self.accelerator.process_index :: processes].split(sizes):
            batch = Rollout(*(x[group.to(x.device)] for x in rollout))
            mask = batch.completion_mask.bool()
            input_ids, _ = right_packed(*join(batch.prompts, batch.completion_ids, batch.completion_mask))
            groups.append(
                {
                    "input_ids": input_ids,
                    "columns": state_columns(batch.prompt_mask.sum(1), mask.sum(1), input_ids.shape[1]),
                    "old_per_token_logps": batch.per_token_logps[mask],
                    "old_values": batch.values[mask],
                    "advantages": batch.advantages[mask],
                    "returns": batch.returns[mask],
                    "num_tokens": num_tokens,
                }
            )
        return groups

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The gradients of one mini-batch, and its loss: group after group, so that memory is needed for one alone."""
        *groups, last = inputs["groups"]
        synchronised = self.accelerator.sync_gradients
        loss = torch.zeros((), device=self.accelerator.device)
        for group in groups:
            self.accelerator.gradient_state._set_sync_gradients(False)
            # DeepSpeed's engine looks at the flag alone. FSDP would keep the gradients of all weights whole.
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            with nullcontext() if sharded else self.accelerator.no_sync(model):
                loss += BaseTrainer.training_step(self, model, group, num_items_in_batch)
        self.accelerator.gradient_state._set_sync_gradients(synchronised)
        loss += BaseTrainer.training_step(self, model, last, num_items_in_batch)
        self._steps_in_statistics += 1
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """PPO's loss of one group: its share of the mean over the tokens of the mini-batch."""
        if return_outputs:
            raise ValueError("PPO's loss has no outputs to return; call `evaluate` for metrics.")
        args, old_logps, advantages = self.args, inputs["old_per_token_logps"], inputs["advantages"]

        def policy_loss(logps: Tensor, tokens: slice) -> Tensor:
            return policy_losses(logps, old_logps[tokens], advantages[tokens], args.cliprange)[0]

        policy, values = model(inputs["input_ids"], inputs["columns"], args.temperature, policy_loss)
        vf_losses, vf_clipped = value_losses(values, inputs["old_values"], inputs["returns"], args.cliprange_value)
        _, pg_clipped, ratio = policy_losses(policy.per_token_logps, old_logps, advantages, args.cliprange)
        token_sums = {
            "loss/policy_avg": policy.loss,
            "loss/value_avg": vf_losses.sum(),
            "policy/approxkl_avg": 0.5 * (policy.per_token_logps - old_logps).square().sum(),
            "policy/clipfrac_avg": pg_clipped.sum(),
            "policy/entropy_avg": policy.entropies.sum(),
            "val/clipfrac_avg": vf_clipped.sum(),
            "val/ratio": ratio.sum(),
            "val/ratio_square": ratio.square().sum(),
        }
        shares = {name: x / inputs["num_tokens"] for name, x in token_sums.items()}
        self._statistic_names = list(shares)
        self._step_statistics.append(torch.stack([share.detach() for share in shares.values()]))
        loss = shares["loss/policy_avg"] + args.vf_coef * shares["loss/value_avg"]
        # DDP averages the gradients of the processes, whose shares add up to the mean.
        return loss * self.accelerator.num_processes

    # --- parts of a rollout ----------------------------------------------------------------------------------------

    def _local_rows(self, total: int) -> range:
        """Which of `total` rows are this process's: the process_index-th block."""
        size = total // self.accelerator.num_processes
        return range(size * self.accelerator.process_index, size * (self.accelerator.process_index + 1))

    def _collate(self, rows: list[dict[str, Any]]) -> Prompts:
        for index, row in enumerate(rows):
            if len(row["input_ids"]) == 0:
                raise ValueError(f"Prompt {index} of this batch has no token: its first token would have no state.")
        batch = self.data_collator([{"input_ids": row["input_ids"]} for row in rows])
        if "attention_mask" not in batch or not bool(batch["attention_mask"][:, -1].all()):
            raise ValueError("`data_collator` must return `input_ids` padded on the left and their `attention_mask`.")
        prompts = Prompts(
            batch["input_ids"].to(self.accelerator.device), batch["attention_mask"].to(self.accelerator.device)
        )
        longest = prompts.ids.shape[1] + self.args.response_length
        for name, model in self._readers().items():
            limit = getattr(without_peft(model).config.get_text_config(), "max_position_embeddings", None)
            if limit is not None and longest > limit:
                raise ValueError(
                    f"A prompt of {prompts.ids.shape[1]} tokens and `response_length={self.args.response_length}` do not fit "
                    f"in the {limit} positions of `{name}`: leave such prompts out or shorten the responses."
                )
        return prompts

    def _readers(self) -> dict[str, nn.Module]:
        """The models that read the policy's own tokens, by argument."""
        models = {"model": self.policy_model, "ref_model": self.ref_model, "value_model": self.value_model}
        if self.scorer.reward_processing_class is None:
            models["reward_model"] = self.reward_model
        return {name: model for name, model in models.items() if isinstance(model, nn.Module)}

    def _generate(self, prompts: Prompts, uniform: Tensor, temperature: float) -> Completions:
        if self.vllm_engine is not None:
            return self.vllm_engine.generate(prompts, temperature)
        chunks = []
        size = self.args.local_rollout_forward_batch_size
        with self._evaluation_mode(self.policy_model) as policy:
            for i in range(0, len(prompts.ids), size):
                chunks.append(
                    generate(
                        policy,
                        Prompts(*(x[i : i + size] for x in prompts)),
                        uniform[i : i + size],
                        temperature=temperature,
                        stop_token_id=self.stop_token_id,
                        pad_token_id=self.processing_class.pad_token_id,
                    )
                )
        length = max(chunk.ids.shape[1] for chunk in chunks)
        pad = self.processing_class.pad_token_id
        return Completions(
            torch.cat([_pad_right(chunk.ids, length, pad) for chunk in chunks]),
            torch.cat([_pad_right(chunk.mask, length) for chunk in chunks]),
            torch.cat([_pad_right(chunk.per_token_logps, length) for chunk in chunks]),
            torch.cat([chunk.ended for chunk in chunks]),
        )

    def _gather(self, prompts: Prompts, completions: Completions, *read: Tensor) -> tuple[Any, ...]:
        """The same for the rows of all processes, in the order of the batch."""
        accelerator, pad = self.accelerator, self.processing_class.pad_token_id
        if accelerator.num_processes == 1:
            return prompts, completions, *read

        def gather(x: Tensor, pad_index: int = 0, pad_first: bool = False) -> Tensor:
            if x.ndim > 1:
                x = accelerator.pad_across_processes(x, dim=1, pad_index=pad_index, pad_first=pad_first)
            return accelerator.gather(x.contiguous())

        prompts = Prompts(gather(prompts.ids, pad, True), gather(prompts.mask, 0, True))
        completions = Completions(gather(completions.ids, pad), *(gather(x) for x in completions[1:]))
        return prompts, completions, *(gather(x) for x in read)

    @contextmanager
    def _evaluation_mode(self, model: Any) -> Iterator[Any]:
        """One of the models, or the reward function, for passes without gradients: with whole weights on this process, and
        with everything that differs between training and evaluation switched off."""
        training = self.model.training
        root = self.model_wrapped if model is self.policy_model or model is self.value_model else model
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast(), unsharded(model, root, self.accelerator):
                yield model
        finally:
            self.model.train(training)

    @contextmanager
    def _reference_policy(self) -> Iterator[nn.Module]:
        """The reference policy in [`_evaluation_mode`]."""
        with self._evaluation_mode(self.policy_model if self.ref_model is None else self.ref_model) as model:
            if self.ref_model is not None:
                yield model
            elif self.args.ref_adapter_name is None:
                with model.disable_adapter():
                    yield model
            else:
                model.set_adapter(self.args.ref_adapter_name)
                try:
                    yield model
                finally:
                    model.set_adapter(self.args.model_adapter_name or "default")

    # --- metrics ---------------------------------------------------------------------------------------------------

    def _log_rollout(self, rollout: Rollout) -> None:
        """Metrics of a rollout, which every process holds whole, under the names of TRL's PPO."""
        mask = rollout.completion_mask
        scores = masked_sum(rollout.token_level_scores, mask, dim=1)
        lengths = mask.sum(1).float()
        kl = masked_sum(rollout.kl, mask, dim=1)
        non_score_rewards = -self._kl_coef * kl
        num_eos_tokens = 0
        if self.processing_class.eos_token_id is not None:
            num_eos_tokens = masked_sum((rollout.completion_ids == self.processing_class.eos_token_id).long(), mask)
        metrics = {
            "objective/kl": kl.mean(),
            "objective/kl_coef": self._kl_coef,
            "objective/entropy": -masked_sum(rollout.per_token_logps, mask, dim=1).mean(),
            "objective/non_score_reward": non_score_rewards.mean(),
            "objective/rlhf_reward": (non_score_rewards + scores).mean(),
            "objective/scores": scores.mean(),
            # As the reward model gives them: centring would make the mean 0.
            "objective/raw_scores": rollout.raw_scores.mean(),
            "objective/token_scores": masked_mean(rollout.token_level_scores, mask),
            # The alarm for rewards that are earned by length: it should hover around 0.
            "objective/score_length_correlation": correlation(scores, lengths),
            "completions/mean_length": lengths.mean(),
            "completions/ended": rollout.ended.float().mean(),
            "completions/repetition": repeated_ngrams(rollout.completion_ids, mask, n=3).mean(),
            "val/num_eos_tokens": num_eos_tokens,
        }
        for name, value in metrics.items():
            self._metrics[name].append(float(value))

    def _log_sampling_difference(self, completions: Completions, logps: Tensor) -> None:
        """How far vLLM's log-probabilities of the tokens that it sampled are from the policy's, under TRL's names."""
        # vLLM may have no number for a token.
        known = completions.mask.bool() & ~completions.per_token_logps.isnan()
        differences = torch.where(known, (completions.per_token_logps - logps).abs(), 0)
        total, count, largest = self.accelerator.gather(
            torch.stack([differences.sum(), known.sum(), differences.max()]).unsqueeze(0)
        ).unbind(1)
        self._metrics["sampling/sampling_logp_difference/mean"].append(float(total.sum() / count.sum().clamp(min=1)))
        self._metrics["sampling/sampling_logp_difference/max"].append(float(largest.max()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the rollouts and steps since the last log to the Trainer's own."""
        if "loss" in logs:
            for name, values in self._metrics.items():
                logs[name] = sum(values) / len(values)
            # An update's completions are all collected before its first step.
            logs["episode"] = math.ceil(self.state.global_step / self.steps_per_update) * self.args.batch_size
            logs.update(self._reduce_step_statistics())
            logs["lr"] = logs["learning_rate"]
            if start_time is not None:
                done = self.state.global_step - self._initial_global_step
                logs["eps"] = done / self.steps_per_update * self.args.batch_size / (time.time() - start_time)
            self._metrics.clear()
        BaseTrainer.log(self, logs, start_time)

    def _reduce_step_statistics(self) -> dict[str, float]:
        if not self._step_statistics:
            return {}
        # Shares of means add up over the groups and processes of a step, and are averaged over steps.
        totals = self.accelerator.reduce(torch.stack(self._step_statistics).sum(0), "sum") / self._steps_in_statistics
        self._forget_step_statistics()
        statistics = dict(zip(self._statistic_names, totals.tolist(), strict=True))
        # Rounding may leave a little less than nothing.
        statistics["val/ratio_var"] = max(0.0, statistics.pop("val/ratio_square") - statistics["val/ratio"] ** 2)
        return statistics

    def _forget_adaptation(self, args: FineGrainedPPOConfig) -> None:
        self._kl_coef, self._length_target = args.kl_coef, args.length_target

    def _forget_step_statistics(self) -> None:
        self._step_statistics: list[Tensor] = []
        self._steps_in_statistics = 0

    # --- evaluation ------------------------------------------------------------------------------------------------

    def _evaluation_batches(self, dataset: Dataset | IterableDataset, temperature: float) -> Iterator[tuple]:
        """Sampled completions of a data set, batch by batch: this process's rows, prompts, completions, and what
        `_read` says of them. The last batch may be short; the processes then share it as evenly as it goes."""
        if self.vllm_engine is not None:
            # Whatever became of the policy since the last rollout: steps, or a checkpoint that was loaded.
            self.vllm_engine.sync()
        size = self.args.per_device_eval_batch_size * self.accelerator.num_processes
        rows, start = [], 0
        for row in dataset:
            rows.append(row)
            if len(rows) == size:
                yield self._evaluate_rows(rows, start, temperature)
                rows, start = [], start + size
        if rows:
            yield self._evaluate_rows(rows, start, temperature)

    def _evaluate_rows(self, rows: list[dict[str, Any]], start: int, temperature: float) -> tuple:
        # A process without rows of its own works on the first, which is not counted.
        with self.accelerator.split_between_processes(list(range(len(rows)))) as local:
            counted = len(local)
            local = local or [0]
        rows = [rows[i] for i in local]
        prompts = self._collate(rows)
        seeds = [
            uniforms((_EVALUATION, self.args.seed), range(start + i, start + i + 1), self.args.response_length)
            for i in local
        ]
        completions = self._generate(prompts, torch.cat(seeds), temperature)
        return counted, rows, prompts, completions, self._read(prompts, completions, rows)

    def evaluate(
        self,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Sample a completion for every evaluation prompt and report its score, KL and length.

        The scores are raw: neither shaped nor spread, so that they compare between configurations. The KL is that of the
        sampled completions at the training temperature.

        Returns:
            `dict[str, float]`: `{prefix}_objective/scores`, `{prefix}_objective/kl`, `{prefix}_completions/mean_length`,
            `{prefix}_completions/ended` and the run time. For a `dict` of data sets, the prefix gets the name of each.
        """
        dataset = self._evaluation_dataset(eval_dataset, "`evaluate`")
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return metrics
        start_time = time.time()
        table = []
        for counted, _, prompts, completions, (ref_logps, _, _, scores, *_) in self._evaluation_batches(
            dataset, self._eval_temperature
        ):
            logps = self._policy_logps(prompts, completions)
            kl = kl_per_token(logps, ref_logps, self.args.kl_estimator)
            columns = (
                masked_sum(scores, completions.mask, dim=1),
                masked_sum(kl, completions.mask, dim=1),
                completions.mask.sum(1),
                completions.ended,
            )
            table.extend(torch.stack([c.float() for c in columns], dim=1)[:counted].tolist())
        table = gather_object(table)
        if not table:
            raise ValueError("The evaluation data set is empty.")
        means = np.mean(table, axis=0)
        names = ("objective/scores", "objective/kl", "completions/mean_length", "completions/ended")
        metrics = {f"{metric_key_prefix}_{name}": float(mean) for name, mean in zip(names, means, strict=True)}
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=len(table)))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _policy_logps(self, prompts: Prompts, completions: Completions) -> Tensor:
        with self._evaluation_mode(self.policy_model) as policy:
            return self._completion_logps(policy, prompts, completions)

    def generate_completions(self, sampling: bool = False) -> Any:
        """Print completions of the evaluation prompts with their scores, and log them to wandb where it is on.

        Args:
            sampling (`bool`, *optional*, defaults to `False`):
                Whether to stop after the first batch of each data set.

        Returns:
            `pandas.DataFrame`: Columns `query`, `model response` and `score`; all rows on every process. `None` where there
            is no evaluation data set.
        """
        import pandas as pd

        if self.eval_dataset is None:
            return None
        dataset = self._evaluation_dataset(None, "`generate_completions`")
        datasets = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
        decode = self.processing_class.decode
        table = []
        batches = (
            islice(self._evaluation_batches(d, self._eval_temperature), 1 if sampling else None) for d in datasets
        )
        for counted, _, prompts, completions, (_, _, _, scores, *_) in chain.from_iterable(batches):
            for i in range(counted):
                table.append(
                    {
                        "query": decode(prompts.ids[i][prompts.mask[i].bool()], skip_special_tokens=True),
                        "model response": decode(completions.ids[i][completions.mask[i].bool()]),
                        "score": float(masked_sum(scores[i], completions.mask[i])),
                    }
                )
        df = pd.DataFrame(gather_object(table))
        if self.accelerator.is_main_process:
            _print_table(df.head(5))
            if "wandb" in self.args.report_to and wandb.run is not None:
                wandb.log({"completions": wandb.Table(dataframe=df)})
        return df

    @property
    def _eval_temperature(self) -> float:
        return self.args.temperature if self.args.eval_temperature is None else self.args.eval_temperature

    def _evaluation_dataset(self, dataset: Any, caller: str) -> Any:
        if isinstance(dataset, str):
            if not isinstance(self.eval_dataset, dict) or dataset not in self.eval_dataset:
                raise ValueError(f"There is no evaluation data set {dataset!r}.")
            dataset = self.eval_dataset[dataset]
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError(f"{caller} needs an `eval_dataset`.")
        if isinstance(dataset, dict):
            return {name: prepare_prompts(part, self.processing_class, name) for name, part in dataset.items()}
        return prepare_prompts(dataset, self.processing_class, "eval")

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """[`~transformers.Trainer.train`]. `resume_from_checkpoint` continues exactly where the checkpoint was written."""
        # What an earlier or interrupted run has left behind must not count in this one.
        self._forget_adaptation(self.args)
        self._metrics.clear()
        self._forget_step_statistics()
        self._save_is_due = False
        return BaseTrainer.train(self, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and the tokenizer to `output_dir`, and the value model to its folder `value_model`."""
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
        for name, model, folder in self._trained_models(output_dir):
            part = None
            if state_dict is not None:
                part = {k.removeprefix(f"{name}."): v for k, v in state_dict.items() if k.startswith(f"{name}.")}
            model.save_pretrained(folder, state_dict=part)
        self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        for name, trained, folder in self._trained_models(resume_from_checkpoint):
            if not os.path.isdir(folder):
                raise ValueError(f"The checkpoint {resume_from_checkpoint} has no folder {folder} with the {name}.")
            if is_peft_model(trained):
                from peft import load_peft_weights, set_peft_model_state_dict

                for adapter in trained.peft_config:
                    path = folder if adapter == "default" else os.path.join(folder, adapter)
                    weights = distributed_like(load_peft_weights(path, device="cpu"), trained)
                    set_peft_model_state_dict(trained, weights, adapter_name=adapter)
            else:
                saved = type(trained).from_pretrained(folder, dtype=trained.dtype, use_safetensors=True)
                trained.load_state_dict(distributed_like(saved.state_dict(), trained))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            BaseTrainer._load_best_model(self)
            return
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _trained_models(self, directory: str) -> Iterator[tuple[str, nn.Module, str]]:
        model = self.accelerator.unwrap_model(self.model)
        yield "policy", model.policy, directory
        yield "value_model", model.value_model, os.path.join(directory, _VALUE_MODEL_FOLDER)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            adapted = {name: getattr(self, f"_{name}") for name in _ADAPTED}
            Path(output_dir, _ADAPTED_FILE).write_text(json.dumps(adapted))
        if not is_fsdp2(self.accelerator):
            BaseTrainer._save_optimizer_and_scheduler(self, output_dir)
            return
        # What Trainer writes without FSDP, so that any number of processes can go on from it, with FSDP or without.
        optimizer = full_optimizer_state_dict(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(optimizer, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and os.path.isfile(os.path.join(checkpoint, _ADAPTED_FILE)):
            for name, value in json.loads(Path(checkpoint, _ADAPTED_FILE).read_text()).items():
                setattr(self, f"_{name}", value)
        if checkpoint is None or not is_fsdp2(self.accelerator):
            BaseTrainer._load_optimizer_and_scheduler(self, checkpoint)
            return
        files = [os.path.join(checkpoint, name) for name in (OPTIMIZER_NAME, SCHEDULER_NAME)]
        if all(map(os.path.isfile, files)):
            optimizer, scheduler = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
            load_optimizer_state_dict(self.model, self.optimizer.optimizer, optimizer)
            self.lr_scheduler.load_state_dict(scheduler)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Between two updates there is nothing to keep but weights, optimizer and counters; within one, there would be a
        # rollout. So a checkpoint that falls due within an update is written at its end.
        if self.state.global_step % self.steps_per_update != 0:
            self._save_is_due = True
            return
        self._save_is_due = False
        name = self.args.hub_model_id.split("/")[-1] if self.args.hub_model_id else Path(self.args.output_dir).name
        self.create_model_card(model_name=name)
        BaseTrainer._save_checkpoint(self, model, trial)


class _UpdateCallback(TrainerCallback):
    """What happens at the end of an update: checkpoints that fell due, samples, and the epoch in terms of prompts."""

    def __init__(self, trainer: FineGrainedPPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        # A stream has no length, so the whole run is its epoch.
        size = len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else args.total_episodes
        state.epoch = state.global_step / trainer.steps_per_update * args.batch_size / size
        trainer._save_is_due |= control.should_save
        if state.global_step % trainer.steps_per_update != 0:
            control.should_save = False
            return control
        control.should_save = trainer._save_is_due
        # A checkpoint holds no metrics that wait to be logged.
        control.should_log |= control.should_save
        update = state.global_step // trainer.steps_per_update
        times = args.num_sample_generations
        if times > 0 and (update - 1) % max(1, args.num_total_batches // times) == 0:
            trainer.generate_completions(sampling=True)
        return control


def _choose_adapters(args: FineGrainedPPOConfig, model: nn.Module, ref_model: nn.Module | None) -> None:
    """Activate the adapter that is trained, so that the optimizer gets its parameters."""
    if ref_model is not None or not is_peft_model(model):
        raise ValueError("`ref_adapter_name` needs a `PeftModel` as `model` and `ref_model=None`.")
    trained = args.model_adapter_name or "default"
    for name in (trained, args.ref_adapter_name):
        if name not in model.peft_config:
            raise ValueError(f"`model` has no adapter {name!r}; it has {sorted(model.peft_config)}.")
    if trained == args.ref_adapter_name:
        raise ValueError(f"The adapter {trained!r} is trained, so it cannot be `ref_adapter_name` too.")
    model.set_adapter(trained)


def _check_best_model(args: FineGrainedPPOConfig, steps_per_update: int) -> None:
    """Checkpoints are written between updates, so only what is evaluated there can be kept as the best."""
    chosen = args.load_best_model_at_end or args.save_strategy == "best"
    if not chosen or args.eval_strategy != "steps":
        return
    eval_steps = args.eval_steps if args.eval_steps >= 1 else math.ceil(args.max_steps * args.eval_steps)
    if eval_steps % steps_per_update != 0:
        raise ValueError(
            f"The best model is chosen among checkpoints, which are written between updates: `eval_steps={args.eval_steps}` "
            f"must be a multiple of num_ppo_epochs * num_mini_batches = {steps_per_update} optimizer steps."
        )


def _disable_dropout(model: nn.Module) -> None:
    """Switch off every dropout: modules, and the rates that attention keeps as plain numbers."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _exact_division(local_batch_size: int, num_mini_batches: int) -> int:
    if local_batch_size % num_mini_batches != 0:
        raise ValueError(
            f"`per_device_train_batch_size * gradient_accumulation_steps` = {local_batch_size} must be a multiple of "
            f"`num_mini_batches` = {num_mini_batches}."
        )
    return local_batch_size // num_mini_batches


def _number_of_updates(args: FineGrainedPPOConfig, dataset: Dataset | IterableDataset, steps_per_update: int) -> int:
    if args.max_steps > 0:
        if args.max_steps % steps_per_update != 0:
            raise ValueError(
                f"`max_steps={args.max_steps}` ends within an update: make it a multiple of num_ppo_epochs * "
                f"num_mini_batches = {steps_per_update}."
            )
        return args.max_steps // steps_per_update
    if args.total_episodes is not None:
        return math.ceil(args.total_episodes / args.batch_size)
    if not isinstance(dataset, Dataset):
        raise ValueError("A stream has no length: set `total_episodes` or `max_steps`.")
    return math.ceil(args.num_train_epochs * len(dataset) / args.batch_size)


def _pad_right(x: Tensor, width: int, value: int = 0) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[1]), value=value)


def _print_table(df: Any) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for column in df.columns:
        table.add_column(column)
    for row in df.itertuples(index=False):
        table.add_row(*(Text(str(cell)) for cell in row))  # Text, since completions may look like rich's markup.
    Console().print(table)
