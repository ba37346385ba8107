"""The data types of completions."""

from typing import NamedTuple

from torch import Tensor

from .prompts import Prompts


class Completions(NamedTuple):
    """Sampled completions.

    Attributes:
        ids (`Tensor`):
            Shape (B, T), filled up with the pad token.
        mask (`Tensor`):
            Shape (B, T), 1 up to and including the stop token.
        per_token_logps (`Tensor`):
            Shape (B, T): log-probabilities of the sampled tokens at the sampling temperature, 0 where the mask is 0.
        ended (`Tensor`):
            Shape (B,): whether the completion ends with the stop token.
    """

    ids: Tensor
    mask: Tensor
    per_token_logps: Tensor
    ended: Tensor


class Rollout(NamedTuple):
    """One batch of completions with everything that PPO computes for it.

    B completions, P prompt columns, T completion columns.

    Attributes:
        prompt_ids, prompt_mask (`Tensor`):
            Shape (B, P), left-padded.
        completion_ids, completion_mask (`Tensor`):
            Shape (B, T), right-padded.
        ended (`Tensor`):
            Shape (B,).
        per_token_logps, ref_per_token_logps (`Tensor`):
            Shape (B, T), nats.
        values (`Tensor`):
            Shape (B, T): V(s_t), before token t.
        final_values (`Tensor`):
            Shape (B,): the value after the last real token.
        raw_scores (`Tensor`):
            Shape (B,): each completion's total as the reward model gives it, before shaping.
        raw_token_scores (`Tensor`):
            Shape (B, T): what it is made up of, 0 where the mask is 0.
        token_level_scores (`Tensor`):
            Shape (B, T).
        kl (`Tensor`):
            Shape (B, T).
        token_level_rewards, advantages, returns (`Tensor`):
            Shape (B, T).
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    ended: Tensor
    per_token_logps: Tensor
    ref_per_token_logps: Tensor
    values: Tensor
    final_values: Tensor
    raw_scores: Tensor
    raw_token_scores: Tensor
    token_level_scores: Tensor
    kl: Tensor
    token_level_rewards: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.prompt_ids, self.prompt_mask)

    def rows(self, rows: Tensor) -> "Rollout":
        """A rollout of some of the rows.

        Args:
            rows (`Tensor`):
                Their numbers, on any device.
        """
        return Rollout(*(x[rows.to(x.device)] for x in self))
