"""A value head on the policy's own backbone: one forward and one backward pass for both losses."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..nn.lm_head import states_and_head
from ..reward_model.heads import ScoreHead


FILE = "value_head.safetensors"


class ValueHead(nn.Module):
    """
    Values as a linear function of the policy's last hidden states, as in the first PPO of TRL.

    It begins at 0, so that the first advantages are the returns. The backbone stays the policy's: no parameter of it is
    one of this module's.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            A causal language model, whose logits are a head's on its last hidden states.

    Raises:
        ValueError: If how the policy makes its logits is not known, so that there are no states to read.
    """

    def __init__(self, policy: nn.Module):
        super().__init__()
        self._policy = [policy]  # not registered: what is saved, moved and counted is the policy's
        device = next(policy.parameters()).device
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        with torch.no_grad():
            states, head = states_and_head(policy, ids, torch.zeros(1, dtype=torch.long, device=device))
        if isinstance(head.module, nn.Identity):
            raise ValueError(
                f"`share_value_backbone` reads the policy's last hidden states, and how a {type(policy).__name__} "
                "makes its logits of them is not known. Leave it at `False`."
            )
        self.score = ScoreHead(states.shape[-1], bias=True, device=device, dtype=torch.float32)

    @property
    def policy(self) -> nn.Module:
        """The model whose backbone it reads."""
        return self._policy[0]

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.policy.config

    def forward(self, states: Tensor) -> Tensor:
        """Values, (N,), of hidden states, (N, H)."""
        return self.score(states).squeeze(-1)

    def prefix_values(self, input_ids: Tensor) -> Tensor:
        """Values at every column, (B, L), of right-packed rows."""
        columns = torch.arange(input_ids.numel(), device=input_ids.device)
        states, _ = states_and_head(self.policy, input_ids, columns)
        return self(states).view(input_ids.shape)

    def save_pretrained(self, directory: str | os.PathLike, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the head alone."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state_dict is None else state_dict
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(directory, FILE))

    @staticmethod
    def read(directory: str | os.PathLike) -> dict[str, Tensor]:
        """The weights that [`ValueHead.save_pretrained`] wrote.

        Raises:
            ValueError: If there are none.
        """
        path = Path(directory, FILE)
        if not path.exists():
            raise ValueError(
                f"{directory} has no {FILE}: the checkpoint is of a run without `share_value_backbone`. Resume with "
                "the setting that it was written with."
            )
        return load_file(path)
