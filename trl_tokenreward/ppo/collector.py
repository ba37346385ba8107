"""Collecting a rollout: prompts, completions, scores, rewards, advantages."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..nn.finite import not_finite
from ..nn.masked import masked_whiten
from ..nn.modules import computes_low
from .adaptation import AdaptiveState
from .completion_scorer import RawScores
from .config import FineGrainedPPOConfig
from .functional import gae, hold_mean_length, kl_per_token, mean_length, place_at_last, token_level_rewards
from .inference import Inference
from .metrics import sampling_difference
from .prompts import DataCollator, Prompts, PromptSource, check_room
from .rewards import Rewards
from .rollout import Completions, Rollout
from .sampling import generate, uniforms
from .schedule import SAMPLING, share_of
from .vllm import VLLMEngine


class Readings(NamedTuple):
    """What the reference, value and reward models give for B completions of T tokens.

    Attributes:
        ref_per_token_logps (`Tensor`):
            Shape (B, T), nats.
        values (`Tensor`):
            Shape (B, T): V(s_t), before token t.
        final_values (`Tensor`):
            Shape (B,): the value after the last real token.
        scores (`dict[str, RawScores]`):
            What each reward says before it is shaped, by [`~ppo.rewards.Reward.says`].
    """

    ref_per_token_logps: Tensor
    values: Tensor
    final_values: Tensor
    scores: dict[str, RawScores]

    def by_model(self) -> dict[str, Tensor]:
        """The numbers, named by the arguments that the models come in."""
        return {
            "a log-probability of `ref_model`": self.ref_per_token_logps,
            "a value of `value_model`": self.values,
            "the last value of `value_model`": self.final_values,
            **{says: scores.values for says, scores in self.scores.items()},
        }


class Collected(NamedTuple):
    """The rollout of an update, and metrics of how it was collected."""

    rollout: Rollout
    metrics: dict[str, float]


class RolloutCollector:
    """Samples completions and scores them.

    Args:
        inference ([`~ppo.inference.Inference`]):
            The models.
        rewards ([`~ppo.rewards.Rewards`]):
            Scores of completions.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the policy.
        data_collator (`Callable`):
            Makes left-padded `input_ids` and `attention_mask` of a list of rows.
        args ([`FineGrainedPPOConfig`]):
            The settings.
        accelerator (`Accelerator`):
            The processes.
        stop_token_id (`int` or `None`):
            Ends a completion.
        vllm_engine ([`~ppo.vllm.VLLMEngine`], *optional*):
            Samples the completions in place of transformers.
    """

    def __init__(
        self,
        inference: Inference,
        rewards: Rewards,
        processing_class: PreTrainedTokenizerBase,
        data_collator: DataCollator,
        args: FineGrainedPPOConfig,
        accelerator: Accelerator,
        stop_token_id: int | None,
        vllm_engine: VLLMEngine | None,
    ):
        self.inference, self.rewards = inference, rewards
        self.processing_class, self.data_collator = processing_class, data_collator
        self.args, self.accelerator = args, accelerator
        self.stop_token_id, self.vllm_engine = stop_token_id, vllm_engine

    def collect(self, update: int, source: PromptSource, adaptive: AdaptiveState) -> Collected:
        """The rollout of update number `update`, whole on every process."""
        self.sync()
        rows = source.rows(update)
        local = share_of(len(rows), self.accelerator)
        rows = [rows[i] for i in local]
        prompts = self.collate(rows)
        numbers = uniforms((SAMPLING, self.args.seed, update), local, self.args.response_length)
        completions, metrics = self._with_own_logps(prompts, self.generate(prompts, numbers, self.args.temperature))
        readings = self.read(prompts, completions, rows)
        # Checked when gathered, so that all processes raise the same.
        prompts, completions, readings = self._gather(prompts, completions, readings)
        made = {"a log-probability of `model`": completions.per_token_logps, **readings.by_model()}
        _check(update, made, completions.mask)
        metrics.update(self.rewards.metrics(readings.scores, completions.mask))
        rollout, length_bonus = self.advantages(prompts, completions, readings, adaptive)
        made = {
            "a score of `reward_model`, shaped,": rollout.token_level_scores,
            "a reward": rollout.token_level_rewards,
            "an advantage": rollout.advantages,
            "a return": rollout.returns,
        }
        _check(update, made, completions.mask)
        if length_bonus is not None:
            metrics["objective/length_bonus"] = length_bonus
        return Collected(rollout, metrics)

    def sync(self) -> None:
        """Send the policy's weights to vLLM, where vLLM samples."""
        if self.vllm_engine is not None:
            self.vllm_engine.sync()

    def collate(self, rows: list[dict[str, Any]]) -> Prompts:
        """Padded prompts of rows with `input_ids`.

        Raises:
            ValueError: If a prompt is empty or does not fit into a model with the longest completion.
        """
        for index, row in enumerate(rows):
            if len(row["input_ids"]) == 0:
                raise ValueError(f"Prompt {index} of this batch has no token: its first token would have no state.")
        batch = self.data_collator([{"input_ids": row["input_ids"]} for row in rows])
        if "attention_mask" not in batch or not bool(batch["attention_mask"][:, -1].all()):
            raise ValueError("`data_collator` must return `input_ids` padded on the left and their `attention_mask`.")
        device = self.accelerator.device
        prompts = Prompts(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        self.check_fits(prompts.ids.shape[1], "A prompt")
        return prompts

    def check_fits(self, length: int, which: str) -> None:
        """Checks that a model has room for a prompt with the longest completion.

        Args:
            length (`int`):
                Tokens of the prompt.
            which (`str`):
                What the error calls it.

        Raises:
            ValueError: If there is none in one of the models that read the policy's tokens.
        """
        remedy = "set `max_prompt_length={most}` to drop such rows, or shorten the responses."
        check_room(length, which, self._readers(), remedy, response_length=self.args.response_length)

    def generate(self, prompts: Prompts, uniform: Tensor, temperature: float) -> Completions:
        """Sample one completion for each prompt. `uniform`, (B, T), holds the random numbers to sample with."""
        if self.vllm_engine is not None:
            return self.vllm_engine.generate(prompts, temperature)
        chunks = []
        size, pad = self.args.local_rollout_forward_batch_size, self.processing_class.pad_token_id
        with self.inference.use(self.inference.models.policy) as policy:
            for i in range(0, len(prompts.ids), size):
                chunks.append(
                    generate(
                        policy,
                        Prompts(*(x[i : i + size] for x in prompts)),
                        uniform[i : i + size],
                        temperature=temperature,
                        stop_token_id=self.stop_token_id,
                        pad_token_id=pad,
                    )
                )
        return _concatenated(chunks, pad)

    def read(self, prompts: Prompts, completions: Completions, rows: list[dict[str, Any]]) -> Readings:
        """Run the reference, value and reward models on completions, one after the other, so that the whole weights of
        one alone are needed at a time."""
        ref_per_token_logps = self.inference.ref_logps(prompts, completions)
        values, final_values = self.inference.values(prompts, completions)
        batch = prompts, completions.ids, completions.mask, rows
        scores = {}
        for reward in self.rewards.rewards:
            model = reward.scorer.reward
            # A function computes as its author has it, not in the trainer's precision.
            with self.inference.use(model) if isinstance(model, nn.Module) else nullcontext():
                scores[reward.says] = reward.scorer.raw_scores(*batch)
        return Readings(ref_per_token_logps, values, final_values, scores)

    def advantages(
        self, prompts: Prompts, completions: Completions, readings: Readings, adaptive: AdaptiveState
    ) -> tuple[Rollout, float | None]:
        """From raw scores of the whole batch to advantages and returns.

        Returns:
            `tuple[Rollout, float | None]`: The rollout, and what a token is paid to hold the mean length, if it is
            held.
        """
        args, mask = self.args, completions.mask
        scores = self._token_level_scores(completions, readings)
        kl = kl_per_token(completions.per_token_logps, readings.ref_per_token_logps, args.kl_estimator) * mask
        rewards = token_level_rewards(scores, kl, mask, adaptive.kl_coef)
        if args.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        bootstrap = readings.final_values * ~completions.ended if args.bootstrap_truncated else None
        advantages, returns = gae(rewards, readings.values, mask, args.gamma, args.lam, bootstrap)
        length_bonus = None
        if args.hold_length:
            target = mean_length(mask) if adaptive.target_length is None else adaptive.target_length
            advantages, length_bonus = hold_mean_length(advantages, mask, target)
        raw_token_scores = self.rewards.total(readings.scores) * mask
        rollout = Rollout(
            prompt_ids=prompts.ids,
            prompt_mask=prompts.mask,
            completion_ids=completions.ids,
            completion_mask=mask,
            ended=completions.ended,
            per_token_logps=completions.per_token_logps,
            ref_per_token_logps=readings.ref_per_token_logps,
            values=readings.values,
            final_values=readings.final_values,
            raw_scores=raw_token_scores.sum(1),
            raw_token_scores=raw_token_scores,
            token_level_scores=scores,
            kl=kl,
            token_level_rewards=rewards,
            advantages=masked_whiten(advantages, mask),
            returns=returns,
        )
        return rollout, length_bonus

    def _token_level_scores(self, completions: Completions, readings: Readings) -> Tensor:
        """Scores, (B, T), shaped, spread over tokens and with the penalty for completions without a stop token."""
        args, mask = self.args, completions.mask
        scores = self.rewards.spread(readings.scores, completions.ids, mask)
        if args.missing_eos_penalty is not None:
            scores = scores - place_at_last(args.missing_eos_penalty * ~self._has_eos(completions), mask)
        return scores

    def _has_eos(self, completions: Completions) -> Tensor:
        """Shape (B,): whether a completion ends with the stop token; where there is none, whether it has an EOS
        anywhere, as in TRL."""
        if self.stop_token_id is not None:
            return completions.ended
        eos = completions.ids == self.processing_class.eos_token_id
        return (eos & completions.mask.bool()).any(1)

    def _with_own_logps(self, prompts: Prompts, completions: Completions) -> tuple[Completions, dict[str, float]]:
        """Completions with the policy's own log-probabilities, where those of sampling are not exact.

        At low precision a full pass and cached decoding differ by more than rounding, as vLLM and transformers do at
        any: PPO's ratio would not start at 1.
        """
        low = self.accelerator.mixed_precision != "no" or computes_low(self.inference.models.policy)
        if self.vllm_engine is None and not low:
            return completions, {}
        logps = self.inference.policy_logps(prompts, completions)
        metrics = {} if self.vllm_engine is None else sampling_difference(completions, logps, self.accelerator)
        return completions._replace(per_token_logps=logps), metrics

    def _readers(self) -> dict[str, nn.Module]:
        """The models that read the policy's own tokens, by argument."""
        given = self.inference.models
        models = {"model": given.policy, "ref_model": given.ref_model, "value_model": given.value_model}
        models |= self.rewards.readers
        return {name: model for name, model in models.items() if isinstance(model, nn.Module)}

    def _gather(
        self, prompts: Prompts, completions: Completions, readings: Readings
    ) -> tuple[Prompts, Completions, Readings]:
        """The same for the rows of all processes, in the order of the batch."""
        accelerator, pad = self.accelerator, self.processing_class.pad_token_id
        if accelerator.num_processes == 1:
            return prompts, completions, readings

        def gather(x: Tensor, pad_index: int = 0, pad_first: bool = False) -> Tensor:
            if x.ndim > 1:
                x = accelerator.pad_across_processes(x, dim=1, pad_index=pad_index, pad_first=pad_first)
            return accelerator.gather(x.contiguous())

        return (
            Prompts(gather(prompts.ids, pad, True), gather(prompts.mask, 0, True)),
            Completions(gather(completions.ids, pad), *(gather(x) for x in completions[1:])),
            Readings(
                ref_per_token_logps=gather(readings.ref_per_token_logps),
                values=gather(readings.values),
                final_values=gather(readings.final_values),
                scores={
                    says: scores._replace(values=gather(scores.values), counts=gather(scores.counts))
                    for says, scores in readings.scores.items()
                },
            ),
        )


def _check(update: int, numbers: dict[str, Tensor], mask: Tensor) -> None:
    if problem := not_finite(f"Update {update}", numbers, mask):
        raise ValueError(f"{problem} The checkpoints of earlier updates are as they were.")


def _concatenated(chunks: list[Completions], pad_token_id: int) -> Completions:
    length = max(chunk.ids.shape[1] for chunk in chunks)
    return Completions(
        torch.cat([_pad_right(chunk.ids, length, pad_token_id) for chunk in chunks]),
        torch.cat([_pad_right(chunk.mask, length) for chunk in chunks]),
        torch.cat([_pad_right(chunk.per_token_logps, length) for chunk in chunks]),
        torch.cat([chunk.ended for chunk in chunks]),
    )


def _pad_right(x: Tensor, width: int, value: int = 0) -> Tensor:
    return nn.functional.pad(x, (0, width - x.shape[1]), value=value)
