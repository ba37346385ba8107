"""Metrics of rollouts and of optimizer steps, under the names of TRL's PPO."""

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor

from ..nn.masked import masked_mean, masked_sum
from .functional import correlation, repeated_ngrams
from .rollout import Completions, Rollout


def rollout_metrics(rollout: Rollout, kl_coef: float, eos_token_id: int | None) -> dict[str, float]:
    """Metrics of a rollout, which every process holds whole.

    Args:
        rollout ([`~ppo.rollout.Rollout`]):
            The rollout.
        kl_coef (`float`):
            Coefficient of its KL penalty.
        eos_token_id (`int` or `None`):
            The token that `val/num_eos_tokens` counts.
    """
    mask = rollout.completion_mask
    scores = masked_sum(rollout.token_level_scores, mask, dim=1)
    lengths = mask.sum(1).float()
    kl = masked_sum(rollout.kl, mask, dim=1)
    non_score_rewards = -kl_coef * kl
    num_eos_tokens = 0 if eos_token_id is None else masked_sum((rollout.completion_ids == eos_token_id).long(), mask)
    metrics = {
        "objective/kl": kl.mean(),
        "objective/kl_coef": kl_coef,
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
    return {name: float(value) for name, value in metrics.items()}


def sampling_difference(completions: Completions, logps: Tensor, accelerator: Accelerator) -> dict[str, float]:
    """How far vLLM's log-probabilities of the tokens that it sampled are from the policy's, over all processes, in
    nats.

    Args:
        completions ([`~ppo.rollout.Completions`]):
            With vLLM's log-probabilities. vLLM may have no number for a token, which is then NaN and does not count.
        logps (`Tensor`):
            Shape (B, T): the policy's.
        accelerator (`Accelerator`):
            The processes.

    Raises:
        RuntimeError: If vLLM has no finite number for any token, as with weights that are NaN.
    """
    known = completions.mask.bool() & ~completions.per_token_logps.isnan()
    differences = torch.where(known, (completions.per_token_logps - logps).abs(), 0)
    total, count, largest = accelerator.gather(
        torch.stack([differences.sum(), known.sum(), differences.max()]).unsqueeze(0)
    ).unbind(1)
    if not count.any() or not total.isfinite().all():
        raise RuntimeError(
            "vLLM's log-probabilities are not finite numbers: what it samples does not come from the policy."
        )
    return {
        "sampling/sampling_logp_difference/mean": float(total.sum() / count.sum().clamp(min=1)),
        "sampling/sampling_logp_difference/max": float(largest.max()),
    }


class RolloutMetrics:
    """Means of the metrics of the rollouts since the last log."""

    def __init__(self):
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._values[name].append(value)

    def pop(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means


class StepStatistics:
    """Statistics of the optimizer steps since the last log, as shares of means over the tokens of a mini-batch."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self._names: list[str] = []
        self._shares: dict[str, Tensor] = {}
        self._steps: list[Tensor] = []

    def add(self, shares: dict[str, Tensor]) -> None:
        """The shares of one group of rows, all of them or some."""
        for name, share in shares.items():
            self._shares[name] = self._shares.get(name, 0) + share.detach()

    def end_step(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The statistics of a step: its shares added up over the groups and processes, the same on every process."""
        self._names = list(self._shares)
        self._steps.append(accelerator.reduce(torch.stack([*self._shares.values()]), "sum"))
        self._shares.clear()
        return dict(zip(self._names, self._steps[-1], strict=True))

    def pop(self) -> dict[str, float]:
        """The means over the steps."""
        if not self._steps:
            return {}
        totals = torch.stack(self._steps).mean(0)
        statistics = dict(zip(self._names, totals.tolist(), strict=True))
        self.clear()
        # Rounding may leave a little less than nothing.
        statistics["val/ratio_var"] = max(0.0, statistics.pop("val/ratio_square") - statistics["val/ratio"] ** 2)
        return statistics
