"""Checks that numbers are usable, made where the numbers are made: a NaN spreads from one score to all weights, and
training goes on without a word."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


if TYPE_CHECKING:
    from transformers import Trainer  # takes long, and who only scores does without


# Losses and variances take squares, and float32 ends at 3e38.
LARGEST = 1e18


def not_finite(
    where: str, numbers: Mapping[str, Tensor], mask: Tensor | None = None, rows: Sequence[int] | None = None
) -> str | None:
    """What is wrong with the first of some numbers that are NaN, infinite or too large for their squares.

    The device is asked once, unless something is wrong.

    Args:
        where (`str`):
            Where in the run this is, which begins the message.
        numbers (`Mapping[str, Tensor]`):
            By name, with the model that they are of. Each is a scalar or of shape (B,) or (B, T).
        mask (`Tensor`, *optional*):
            Shape (B, T). Where it is 0, what has this shape may be anything.
        rows (`Sequence[int]`, *optional*):
            What the B rows are called. If `None`, they are counted from 0.

    Returns:
        `str` or `None`: The message, or `None` if all is well.
    """
    unusable = {}
    for name, values in numbers.items():
        unusable[name] = ~(values.detach().float().abs() <= LARGEST)  # not `> LARGEST`, which is false of NaN
        if mask is not None and values.shape == mask.shape:
            unusable[name] &= mask.bool()
    if not torch.stack([bad.any() for bad in unusable.values()]).any():
        return None
    name = next(name for name, bad in unusable.items() if bad.any())
    place = unusable[name].nonzero()[0].tolist()
    if place:
        where += f", row {place[0] if rows is None else rows[place[0]]}"
    value = float(numbers[name][tuple(place)])
    fault = "too large for its square" if math.isfinite(value) else "not a finite number"
    return _with_advice(f"{where}: {name} is {value:g}, {fault}")


def weights_not_finite(model: nn.Module, where: str) -> str | None:
    """A message that names the first trained parameter with a NaN or an infinity, if there is one. Of a sharded
    parameter, this process's shard counts."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = parameter.detach()
            values = values.to_local() if isinstance(values, DTensor) else values
            if not values.isfinite().all():
                return _with_advice(f"{where}: the weight {name} has NaN or infinite numbers")
    return None


def check_weights(trainer: "Trainer") -> None:
    """Raise a `ValueError` on every process where trained weights are NaN or infinite: a gradient may be, although the
    loss is not. Every process has to call it."""
    where = f"After optimizer step {trainer.state.global_step}"
    raise_together(weights_not_finite(trainer.model, where), trainer.accelerator)


def raise_together(problem: str | None, accelerator: Accelerator) -> None:
    """Raise a `ValueError` on every process if there is a problem on one of them. Every process has to call it."""
    problems = [problem] if accelerator.num_processes == 1 else gather_object([problem])
    for found in problems:
        if found is not None:
            raise ValueError(found)


def _with_advice(fault: str) -> str:
    return (
        f"{fault}. Look for NaN in that model's weights, for rewards that are far too large, for a learning rate that "
        "is too high, or for an overflow of half precision."
    )
