"""The heads of token reward models and of classifiers."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..nn.precision import widen


class ScoreHead(nn.Linear):
    """
    A linear layer with one output that computes in float32 whatever the dtype of its weights and of its input.

    A score between 4 and 8 has steps of 1/32 in bfloat16: coarser than the score of a token, or than the difference
    between the scores of two prefixes.
    """

    def __init__(self, hidden_size: int, bias: bool, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__(hidden_size, 1, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        # The model's `_init_weights` sets them. No random numbers are drawn here, so the same seed gives the same head
        # as a sequence classifier of transformers gets.
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        device_type = hidden_states.device.type
        # Mixed precision casts the operands of every matrix product; here they are to stay as they are.
        can_autocast = torch.amp.is_autocast_available(device_type)
        with torch.autocast(device_type, enabled=False) if can_autocast else nullcontext():
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden_states.float(), self.weight.float(), bias)


def widen_heads(model: nn.Module) -> None:
    """Make float32 of the trained weights of heads, as PEFT does of an adapter's and not of the modules beside it."""
    for module in model.modules():
        if isinstance(module, ScoreHead):
            widen(module)


def head_of(classifier: PreTrainedModel, backbone: nn.Module) -> nn.Linear:
    """The linear head with one output of a sequence or token classifier.

    Raises:
        ValueError: If there is none, or if there are other layers between it and the backbone.
    """
    name = type(classifier).__name__
    head = next((getattr(classifier, at) for at in ("score", "classifier") if _is_linear(classifier, at)), None)
    if head is None:
        raise ValueError(f"{name} has no linear head named `score` or `classifier`.")
    if head.out_features != 1:
        raise ValueError(f"The head of this {name} has {head.out_features} labels, but a score has one.")
    known = {id(parameter) for module in (backbone, head) for parameter in module.parameters()}
    for parameter_name, parameter in classifier.named_parameters():
        if id(parameter) not in known:
            raise ValueError(
                f"{name} has more than its head on the backbone ({parameter_name!r}), and a token reward model has not."
            )
    return head


def _is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Linear)
