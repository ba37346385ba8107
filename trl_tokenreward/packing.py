"""Right-packed batches: the real tokens of each row stand first, and rows of like length go through a model together.

What follows a token cannot change what a causal model says of it. So with the padding on the right no attention mask is
needed, positions count themselves, and attention runs in its fast, causal form.
"""

from collections.abc import Iterator

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel


# Tokens, padding included, that go through a model at once. More would not be faster, and take more memory.
_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}


def without_peft(model: nn.Module) -> PreTrainedModel:
    """The transformers model under a PEFT wrapper; its adapters stay in place and act."""
    return model.get_base_model() if is_peft_model(model) else model


def right_packed(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's real tokens to its start, in their order.

    Args:
        input_ids, attention_mask (`Tensor`):
            Shape (B, L), the padding anywhere.

    Returns:
        `tuple[Tensor, Tensor]`: ids of shape (B, M), where M is the longest row's number of real tokens, filled up with
        token 0, which every model knows, as it need not know the pad token; and the columns, (B, M), that they came from.
    """
    columns = attention_mask.sort(dim=1, descending=True, stable=True).indices
    columns = columns[:, : int(attention_mask.sum(1).max())]
    return (input_ids * attention_mask).gather(1, columns), columns


def state_columns(prompt_lengths: Tensor, completion_lengths: Tensor, width: int) -> Tensor:
    """Where the outputs stand that predict completion tokens: the column before each of them.

    Args:
        prompt_lengths, completion_lengths (`Tensor`):
            Shape (B,): tokens of the right-packed rows.
        width (`int`):
            L, their columns.

    Returns:
        `Tensor`: Shape (N,), for N completion tokens, row by row: places in the flattened (B * L,). The tokens themselves
        stand one place further.
    """
    columns = torch.arange(width, device=prompt_lengths.device)
    first = (prompt_lengths - 1).unsqueeze(1)
    wanted = (columns >= first) & (columns < first + completion_lengths.unsqueeze(1))
    return wanted.flatten().nonzero().squeeze(1)


def number_of_groups(lengths: Tensor, max_rows: int, device: str) -> int:
    """In how many groups of equally many rows to split rows of these lengths, longest first, so that none has more than `max_rows`
    rows, nor more tokens, padding included, than a pass over this type of device should have."""
    budget = _TOKENS_PER_PASS.get(device, _TOKENS_PER_PASS["cuda"])
    count = -(-len(lengths) // max_rows)
    # The first of a group is its longest.
    while count < len(lengths) and max(len(g) * int(g[0]) for g in lengths.tensor_split(count)) > budget:
        count += 1
    return count


def groups_by_length(lengths: Tensor, max_rows: int) -> Iterator[Tensor]:
    """Which rows go through a model together, longest first, each row once: see [`number_of_groups`].

    Args:
        lengths (`Tensor`):
            Shape (B,): tokens of each row.
        max_rows (`int`):
            Most rows in a group.
    """
    device, lengths = lengths.device.type, lengths.cpu()  # once, and not for each length that is looked at
    order = lengths.argsort(descending=True, stable=True)
    return iter(order.tensor_split(number_of_groups(lengths[order], max_rows, device)))
