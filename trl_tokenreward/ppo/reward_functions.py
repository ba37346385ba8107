"""Reward functions of the user's: what they are called, and what they may return."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._trl import get_config_model_id
from ..nn.modules import without_peft
from ..reward_model.implicit import ImplicitReward
from ..utils.validation import check_keywords, check_list


RewardFunction = Callable[..., list[float] | list[list[float]]]


def reward_name(reward: nn.Module | RewardFunction) -> str:
    """What logs and errors call a reward: a function's name, or a model's, which is the last part of where it came
    from, or its class."""
    if isinstance(reward, ImplicitReward):
        return type(reward).__name__
    if isinstance(reward, nn.Module):
        base = without_peft(reward)
        return get_config_model_id(base.config).split("/")[-1] or type(base).__name__
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def check_call(reward: RewardFunction, columns: Iterable[str]) -> None:
    """Check that a reward function takes what it will be called with.

    Args:
        reward (`Callable`):
            The function.
        columns (`Iterable[str]`):
            What it is called with beside prompts and completions.

    Raises:
        TypeError: If it does not.
    """
    given = ("prompts", "completions", "completion_ids", *columns)
    check_keywords(reward, f"The reward function '{reward_name(reward)}'", given)


def returned_scores(
    returned: Any, name: str, lengths: Sequence[int], may_abstain: bool = False
) -> list[Tensor] | list[Tensor | None]:
    """What a reward function returned, checked.

    Args:
        returned (`Any`):
            What it returned.
        name (`str`):
            Its name, for errors.
        lengths (`Sequence[int]`):
            Tokens of each completion.
        may_abstain (`bool`, *optional*, defaults to `False`):
            Whether `None`, or NaN in place of one number, stands for no opinion of a completion, and whether the scores
            may come one after the other (an iterator), as TRL's GRPO has it.

    Returns:
        `list[Tensor]`: For each completion a float32 tensor: one number, of no dimension, or one for each token. All
        are of one kind, but for those that are `None`.

    Raises:
        TypeError, ValueError: If it returned something else. The error names the completion.
    """
    if may_abstain and isinstance(returned, Iterator):
        returned = list(returned)
    check_list(returned, f"The reward function '{name}'", len(lengths))
    scores = [_as_tensor(item, name, row, may_abstain) for row, item in enumerate(returned)]
    if len({item.ndim for item in scores if item is not None}) > 1:
        raise ValueError(f"The reward function '{name}' returned floats and lists of floats; return one kind.")
    for row, (item, length) in enumerate(zip(scores, lengths, strict=True)):
        if item is not None and item.ndim == 1 and len(item) != length:
            raise ValueError(
                f"The reward function '{name}' returned {len(item)} token scores for completion {row}, which has "
                f"{length} tokens (its EOS counts, and so do the tokens of tools)."
            )
    return scores


def _as_tensor(item: Any, name: str, row: int, may_abstain: bool) -> Tensor | None:
    if item is None and may_abstain:
        return None
    due = (
        f"The reward function '{name}' returned {item!r} for completion {row}, where a finite float or one per token "
        "is due."
    )
    try:
        tensor = torch.as_tensor(item, dtype=torch.float32, device="cpu")
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(due) from error
    if may_abstain and tensor.ndim == 0 and tensor.isnan():
        return None
    if tensor.ndim > 1 or not tensor.isfinite().all():
        raise ValueError(due)
    return tensor
