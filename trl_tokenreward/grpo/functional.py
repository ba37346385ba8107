r"""Advantages of every token within a group of completions: pure functions of tensors.

Shapes: B completions of T tokens, G of one prompt next to each other. Rewards stand at tokens. Where a reward can stand
is `reward_mask`, (B, T): at every token, at the ends of sentences, or at the last token alone. What stands elsewhere
changes nothing.
"""

import torch
from torch import Tensor

from ..nn.masked import check_shapes, zero_masked


# TRL's GRPOTrainer adds this to the standard deviation that it divides by.
EPSILON = 1e-4


def group_advantages(
    rewards: Tensor, reward_mask: Tensor, completion_mask: Tensor, num_generations: int, estimator: str, scale: str
) -> Tensor:
    """[`process_advantages`] or [`leave_one_out_advantages`], as `estimator` says."""
    estimate = {"process": process_advantages, "leave_one_out": leave_one_out_advantages}[estimator]
    return estimate(rewards, reward_mask, completion_mask, num_generations, scale)


def process_advantages(
    rewards: Tensor, reward_mask: Tensor, completion_mask: Tensor, num_generations: int, scale: str = "group"
) -> Tensor:
    r"""Advantages from process rewards (DeepSeekMath, https://huggingface.co/papers/2402.03300, section 4.1.3).

    With R the rewards of a group, all of its completions' together,

    $$ \tilde r_{i,t} = \frac{r_{i,t} - \mathrm{mean}(R)}{\mathrm{std}(R)}, \qquad
    A_{i,t} = \sum_{s \ge t} \tilde r_{i,s} $$

    The mean is taken out of every reward, so a token as good as the group's average adds nothing: a completion does not
    win by its length. With the rewards on the last tokens alone, this is GRPO with one reward for each completion.

    Args:
        rewards (`Tensor`):
            Shape (B, T).
        reward_mask (`Tensor`):
            Shape (B, T): 1 where a reward stands. A row without one has no reward and gets the advantage 0.
        completion_mask (`Tensor`):
            Shape (B, T): 1 for the tokens that get an advantage.
        num_generations (`int`):
            G.
        scale (`str`, *optional*, defaults to `"group"`):
            Standard deviation to divide by: of the rewards of the `"group"`, of the `"batch"`, or `"none"`. They are
            the unbiased ones.

    Returns:
        `Tensor`: Shape (B, T), 0 where the completion mask is 0.

    Raises:
        ValueError: If G is below 2 or does not divide B.
    """
    _check(rewards, reward_mask, completion_mask, num_generations)
    grouped = reward_mask.view(-1, num_generations, reward_mask.shape[1]).bool()
    values = zero_masked(rewards, reward_mask).view(grouped.shape)
    mean = values.sum((1, 2), keepdim=True) / grouped.sum((1, 2), keepdim=True).clamp(min=1)
    centred = zero_masked(values - mean, grouped)
    centred = centred / _divisor(values, grouped, scale)
    return zero_masked(_from_here_on(centred).view(rewards.shape), completion_mask * _has_reward(reward_mask))


def leave_one_out_advantages(
    rewards: Tensor, reward_mask: Tensor, completion_mask: Tensor, num_generations: int, scale: str = "group"
) -> Tensor:
    r"""The return from each token on, less what the others of the group got from there on.

    $$ G_{i,t} = \sum_{s \ge t} r_{i,s}, \qquad A_{i,t} = G_{i,t} - \frac{1}{|O|} \sum_{j \in O} G_{j,t} $$

    O are the other completions of the group that have a token t: they have as much behind them, so the length of what
    is to come differs as little as it can. Where no other is as long, O are all others, each with the return at its
    last token. With all completions of one length and the rewards on the last tokens, this is RLOO's advantage
    (Ahmadian et al., 2024), for every token.

    Args:
        rewards, reward_mask, completion_mask, num_generations:
            As for [`process_advantages`].
        scale (`str`, *optional*, defaults to `"group"`):
            Standard deviation to divide by: of the completions' whole returns in the `"group"`, in the `"batch"`, or
            `"none"`.

    Returns:
        `Tensor`: Shape (B, T), 0 where the completion mask is 0.

    Raises:
        ValueError: If G is below 2 or does not divide B.
    """
    _check(rewards, reward_mask, completion_mask, num_generations)
    scored = _has_reward(reward_mask).view(-1, num_generations, 1)
    returns = _from_here_on(zero_masked(rewards, reward_mask)).view(-1, num_generations, rewards.shape[1])
    # A tool's tokens lie between a completion's own: it is there up to the last of its own.
    alive = (_from_here_on(completion_mask).view(returns.shape) > 0) & scored
    others = _of_others(alive.to(returns.dtype))
    baseline = _of_others(zero_masked(returns, alive)) / others.clamp(min=1)
    last = (alive.sum(2, keepdim=True) - 1).clamp(min=0)
    compared = _of_others(scored.to(returns.dtype))
    fallback = _of_others(zero_masked(returns.gather(2, last), scored)) / compared.clamp(min=1)
    advantages = (returns - torch.where(others > 0, baseline, fallback)) * (compared > 0)
    whole = zero_masked(returns[:, :, :1], scored)
    advantages = advantages / _divisor(whole, scored, scale)
    return zero_masked(advantages.view(rewards.shape), completion_mask * _has_reward(reward_mask))


def _from_here_on(values: Tensor) -> Tensor:
    """The sum of this column and those after it."""
    return values.flip(-1).cumsum(-1).flip(-1)


def _of_others(values: Tensor) -> Tensor:
    """The sum over the group without the completion itself."""
    return values.sum(1, keepdim=True) - values


def _has_reward(reward_mask: Tensor) -> Tensor:
    return reward_mask.bool().any(1, keepdim=True)


def _divisor(values: Tensor, mask: Tensor, scale: str) -> Tensor | float:
    """What advantages are divided by: with the scale `"group"` or `"batch"`, the unbiased standard deviation of values
    that are 0 where the mask is, which is 0 of fewer than two."""
    if scale == "none":
        return 1.0
    dims = (1, 2) if scale == "group" else (0, 1, 2)
    count = mask.sum(dims, keepdim=True)
    mean = values.sum(dims, keepdim=True) / count.clamp(min=1)
    squares = zero_masked(values - mean, mask).square().sum(dims, keepdim=True)
    return (squares / (count - 1).clamp(min=1)).sqrt() + EPSILON


def _check(rewards: Tensor, reward_mask: Tensor, completion_mask: Tensor, num_generations: int) -> None:
    check_shapes("reward_mask", reward_mask, "rewards", rewards)
    check_shapes("completion_mask", completion_mask, "rewards", rewards)
    if num_generations < 2:
        raise ValueError(f"A group needs 2 completions or more to compare, but `num_generations` is {num_generations}.")
    if len(rewards) % num_generations != 0:
        raise ValueError(f"{len(rewards)} completions are no whole number of groups of {num_generations}.")
