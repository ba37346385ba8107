"""Sampling of completions."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .decoding import decoding_of
from .prompts import Prompts
from .rollout import Completions


# Tokens in a block, whose probabilities are summed before one of them is drawn.
_BLOCK = 256


def uniforms(seed: tuple[int, ...], rows: range, length: int) -> Tensor:
    """Random numbers in [0, 1) to sample with, float64 of shape (len(rows), length).

    A row's numbers depend only on the seed and on the row's number in the batch. So a resumed run, or a run on another
    number of processes, samples the same completions.
    """
    return torch.from_numpy(np.stack([np.random.default_rng([*seed, row]).random(length) for row in rows]))


def check_device(device: torch.device) -> None:
    """Raise a `ValueError` for a device on which [`sample`] cannot run: Apple's GPU has no float64."""
    if device.type == "mps":
        raise ValueError(
            "Sampling adds up probabilities in float64, which Apple's GPU (mps) does not have: train with "
            "`use_cpu=True`, or move a model that is evaluated to the CPU."
        )


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for each row from softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits (`Tensor`):
            Shape (B, V).
        temperature (`float`):
            0 takes the likeliest token; log-probabilities are then those at temperature 1.
        uniform (`Tensor`):
            Shape (B,), in [0, 1).

    Returns:
        `tuple[Tensor, Tensor]`: Token ids and their log-probabilities, of shape (B,).
    """
    logits = logits.float()
    peak = logits.amax(-1, keepdim=True)
    exponentials = logits - peak
    if temperature not in (0, 1):
        exponentials /= temperature
    exponentials.exp_()
    if temperature == 0:
        tokens, total = logits.argmax(-1), exponentials.sum(-1)
    else:
        tokens, total = _invert(exponentials, uniform)
    # From the logits, since the exponential of a very unlikely token is 0.
    chosen = (logits.gather(-1, tokens.unsqueeze(-1)) - peak).squeeze(-1)
    return tokens, chosen / (temperature or 1.0) - total.log().float()


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The place in each row of weights, (B, V), where the share `uniform`, (B,), of their sum is reached; and the sums.

    Sums run over blocks first and then within one block, so there is one pass over all weights. Across blocks they run
    in float64: in float32, the rounding error of 150,000 probabilities exceeds the rare ones.
    """
    size = min(_BLOCK, weights.shape[1])
    whole = weights.shape[1] // size * size
    blocks = weights[:, :whole].unflatten(1, (-1, size)).sum(-1)
    rest = weights[:, whole:].sum(-1, keepdim=True)
    cumulative = torch.cat([blocks, rest], dim=1).double().cumsum(-1)
    total = cumulative[:, -1]
    target = uniform.to(total) * total
    block = _first_beyond(cumulative, target)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), 0.0)
    columns = block.unsqueeze(-1) * size + torch.arange(size, device=weights.device)
    inside = weights.gather(-1, columns.clamp(max=weights.shape[1] - 1)).double() * (columns < weights.shape[1])
    place = block * size + _first_beyond(inside.cumsum(-1), target - before)
    # NaN has no place in a distribution; its log-probability then tells of it.
    return place.clamp(max=weights.shape[1] - 1), total


def _first_beyond(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first place in each row whose cumulative weight exceeds the target; never one behind the last weight."""
    place = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(place, last).squeeze(-1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Prompts,
    uniform: Tensor,
    *,
    temperature: float,
    stop_token_id: int | None,
    pad_token_id: int,
) -> Completions:
    """Sample completions from the model's own distribution.

    `model.generate` is not used, for two reasons: it applies the model's generation config, such as a repetition
    penalty, which training does not; and its samples depend on the batch. Rows that have ended leave the batch. Models
    that do not decode with a cache as they read whole texts decode without one.

    Args:
        model (`PreTrainedModel`):
            A causal language model in evaluation mode, under PEFT or not.
        prompts (`Prompts`):
            B prompts.
        uniform (`Tensor`):
            Shape (B, T) with T the most tokens in a completion; see [`uniforms`].
        temperature (`float`):
            0 is greedy.
        stop_token_id (`int` or `None`):
            Ends a completion and belongs to it. `None`: every completion has T tokens.
        pad_token_id (`int`):
            Filler.

    Returns:
        `Completions`: B completions of at most T tokens.
    """
    batch_size, length = uniform.shape
    device = prompts.ids.device
    uniform = uniform.to(device)
    ids = torch.full((batch_size, length), pad_token_id, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    logps = torch.zeros(batch_size, length, device=device)
    ended = torch.zeros(batch_size, dtype=torch.bool, device=device)

    active = torch.arange(batch_size, device=device)
    decoding = decoding_of(model, prompts, length)
    for t in range(length):
        tokens, token_logps = sample(decoding.logits(), temperature, uniform[active, t])
        ids[active, t] = tokens
        mask[active, t] = 1
        logps[active, t] = token_logps
        if stop_token_id is not None:
            going = tokens != stop_token_id
            ended[active[~going]] = True
            if not going.any():
                break
            if not going.all():
                rows = going.nonzero().squeeze(1)
                decoding.keep(rows)
                active, tokens = active[rows], tokens[rows]
        decoding.append(tokens)
    width = int(mask.sum(1).max())
    return Completions(ids[:, :width], mask[:, :width], logps[:, :width], ended)
