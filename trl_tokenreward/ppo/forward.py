"""Log-probabilities and values of completions."""

import copy
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from ..nn.lm_head import HeadLoss, TokenLoss, head_loss, logps_at, states_and_head
from ..nn.sharding import layer_classes
from ..nn.unpadding import right_packed, state_columns
from ..reward_model.readout import packed_prefix_scores
from .value_head import ValueHead


def completion_logps(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int, temperature: float
) -> Tensor:
    """Log-probabilities of the last `length` tokens.

    The token at column c is predicted by the output at column c - 1; logits are made for those columns alone.

    Args:
        model (`nn.Module`):
            A causal language model.
        input_ids, attention_mask (`Tensor`):
            Shape (B, P + T): prompts padded on the left, completions padded on the right.
        length (`int`):
            T.
        temperature (`float`):
            Divides the logits.

    Returns:
        `Tensor`: Shape (B, T), nats, 0 where the mask is 0. No gradient.
    """
    ids, columns, mask = _packed_states(input_ids, attention_mask, length)
    return _unflatten(logps_at(model, ids, columns + 1, temperature), mask)


def completion_values(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Values of the states before each of the last `length` tokens, (B, T), 0 where the mask is 0; and of the state
    after the last real one, (B,)."""
    ids, columns, mask = _packed_states(input_ids, attention_mask, length)
    lengths = attention_mask.sum(1)
    if isinstance(model, ValueHead):
        values = model.prefix_values(ids)
    else:
        packed_mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        values = packed_prefix_scores(model, ids, packed_mask.long())
    final = values.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)
    return _unflatten(values.flatten()[columns], mask), final


def _packed_states(input_ids: Tensor, attention_mask: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-packed ids, where the states before the completions' tokens stand in them, and the completions' mask."""
    mask = attention_mask[:, -length:]
    ids, _ = right_packed(input_ids, attention_mask)
    return ids, state_columns(attention_mask[:, :-length].sum(1), mask.sum(1), ids.shape[1]), mask


def _unflatten(per_token: Tensor, mask: Tensor) -> Tensor:
    """Numbers of the N real tokens, row by row, as (B, T)."""
    return per_token.new_zeros(mask.shape).masked_scatter(mask.bool(), per_token)


Part = Literal["both", "policy", "values"]


class PolicyAndValue(nn.Module):
    """Policy and value model in one module, so that one forward pass, one optimizer and one wrapper serve both.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        value_model (`PreTrainedModel`, `PeftModel` or [`~ppo.value_head.ValueHead`]):
            See [`~reward_model.readout.prefix_scores`]. A head reads the states that the policy's loss is made of.
    """

    # Attributes that transformers.Trainer reads.
    supports_gradient_checkpointing = True
    main_input_name = "input_ids"

    def __init__(self, policy: nn.Module, value_model: nn.Module):
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        # A copy, because Trainer writes the tokenizer's special tokens into it: a pad token that only the tokenizer has
        # would make a checkpoint that cannot be loaded.
        self.config = copy.deepcopy(policy.config)
        # The layers that FSDP shards one by one.
        self._no_split_modules = layer_classes(policy, value_model)

    def forward(
        self, input_ids: Tensor, columns: Tensor, temperature: float, token_loss: TokenLoss, part: Part = "both"
    ) -> tuple[HeadLoss | None, Tensor | None]:
        """The policy's loss and the values of N completion tokens, or one of them.

        Args:
            input_ids (`Tensor`):
                Shape (B, L), right-packed prompts and completions.
            columns (`Tensor`):
                Shape (N,): the states before the completions' tokens, see [`~nn.unpadding.state_columns`].
            temperature (`float`):
                Divides the logits.
            token_loss (`Callable`):
                The policy's loss, see [`~nn.lm_head.head_loss`].
            part (`str`, *optional*, defaults to `"both"`):
                One of [`parts`].

        Returns:
            `tuple`: The policy's loss, a [`~nn.lm_head.HeadLoss`], and the values, (N,); `None` where the part has
            none.
        """
        policy = values = None
        if part != "values":
            states, head = states_and_head(self.policy, input_ids, columns)
            policy = head_loss(head, states, input_ids.flatten()[columns + 1], temperature, token_loss)
            if isinstance(self.value_model, ValueHead):
                return policy, self.value_model(states)
        if part != "policy":
            values = packed_prefix_scores(self.value_model, input_ids).flatten()[columns]
        return policy, values

    def parts(self, accelerator: Accelerator) -> tuple[Part, ...]:
        """What to differentiate at once. In one process, policy and values go one after the other, so that there is
        never more than one model's graph in memory. Wrappers of several processes look for all weights in a pass, and a
        head needs the policy's states."""
        together = accelerator.distributed_type != DistributedType.NO or isinstance(self.value_model, ValueHead)
        return ("both",) if together else ("policy", "values")

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.policy.is_gradient_checkpointing

    @property
    def _backbones(self) -> list[nn.Module]:
        """The models that have layers of their own."""
        return [self.policy] if isinstance(self.value_model, ValueHead) else [self.policy, self.value_model]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        for model in self._backbones:
            model.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        for model in self._backbones:
            model.gradient_checkpointing_disable()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        for model in self._backbones:
            model.activation_checkpointing_enable(*args, **kwargs)

    def add_model_tags(self, tags: list[str] | str) -> None:
        self.policy.add_model_tags(tags)
