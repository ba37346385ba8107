"""Right-packed batches: the real tokens of each row stand first, and rows of like length go through a model together.

Later tokens cannot change a causal model's output at a token. So with the padding on the right no attention mask is
needed, positions count themselves, and attention runs in its fast, causal form.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


# Tokens, padding included, that go through a model at once. More would not be faster, and take more memory.
_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}
# What one pass more costs, in tokens: as many could have gone through in the time that starting it takes. Estimates:
# that of a CPU from a small backbone's passes, that of a GPU from the time of launching kernels, not measured.
_TOKENS_PER_START = {"cpu": 128, "cuda": 2048}


def right_packed(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's real tokens to its start, in their order.

    Args:
        input_ids, attention_mask (`Tensor`):
            Shape (B, L), the padding anywhere.

    Returns:
        `tuple[Tensor, Tensor]`: ids of shape (B, M), where M is the longest row's number of real tokens, filled up with
        token 0, which every model knows, as it need not know the pad token; and the columns, (B, M), that they came
        from.
    """
    columns = _real_first(attention_mask)[:, : int(attention_mask.sum(1).max())]
    return (input_ids * attention_mask).gather(1, columns), columns


def packing_order(real: Tensor) -> Tensor | None:
    """The columns of each row, (B, L), its real tokens first and in their order; `None` where they stand so already.

    Args:
        real (`Tensor`):
            Shape (B, L), boolean.
    """
    if not (real[:, 1:] & ~real[:, :-1]).any():
        return None
    return _real_first(real.byte())


def _real_first(mask: Tensor) -> Tensor:
    return mask.sort(dim=1, descending=True, stable=True).indices


def reordered(x: Tensor, order: Tensor, dim: int = 1) -> Tensor:
    """`x`, of shape (B, ...), with the columns along `dim` in an order, (B, L), of each row."""
    shape = [1] * x.dim()
    shape[0], shape[dim] = order.shape
    return torch.take_along_dim(x, order.view(shape).to(x.device), dim)


def state_columns(prompt_lengths: Tensor, completion_lengths: Tensor, width: int) -> Tensor:
    """Where the outputs stand that predict completion tokens: the column before each of them.

    Args:
        prompt_lengths, completion_lengths (`Tensor`):
            Shape (B,): tokens of the right-packed rows.
        width (`int`):
            L, their columns.

    Returns:
        `Tensor`: Shape (N,), for N completion tokens, row by row: places in the flattened (B * L,). The tokens
        themselves stand one place further.
    """
    columns = torch.arange(width, device=prompt_lengths.device)
    first = (prompt_lengths - 1).unsqueeze(1)
    wanted = (columns >= first) & (columns < first + completion_lengths.unsqueeze(1))
    return wanted.flatten().nonzero().squeeze(1)


def group_sizes(lengths: Sequence[int], max_rows: int, device: str) -> list[int]:
    """How to divide rows of these lengths, longest first, into passes that take the least time together.

    A pass takes time for its tokens, padding included, and for being started. It has at most `max_rows` rows and,
    unless it is a single row, no more tokens than a pass over this type of device should have.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row, in descending order.
        max_rows (`int`):
            Most rows in a pass.
        device (`str`):
            Type of device.

    Returns:
        `list[int]`: numbers of rows, which add up to that of all.
    """
    most = _TOKENS_PER_PASS.get(device, _TOKENS_PER_PASS["cuda"])
    start = _TOKENS_PER_START.get(device, _TOKENS_PER_START["cuda"])
    # The least cost of the first n rows, and where their last pass begins.
    best = [(0, 0)]
    for end in range(1, len(lengths) + 1):
        candidates: list[tuple[int, int]] = []
        for begin in range(end - 1, max(end - max_rows, 0) - 1, -1):
            tokens = lengths[begin] * (end - begin)
            if tokens > most and candidates:
                break
            candidates.append((best[begin][0] + start + tokens, begin))
        best.append(min(candidates))
    sizes, end = [], len(lengths)
    while end:
        begin = best[end][1]
        sizes.append(end - begin)
        end = begin
    return sizes[::-1]


def groups_by_length(lengths: Tensor, max_rows: int) -> tuple[Tensor, ...]:
    """Which rows go through a model together, longest first, each row once: see [`group_sizes`].

    Args:
        lengths (`Tensor`):
            Shape (B,): tokens of each row.
        max_rows (`int`):
            Most rows in a group.
    """
    order = lengths.argsort(descending=True, stable=True)
    return order.split(group_sizes(lengths[order].tolist(), max_rows, lengths.device.type))


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of token ids as one batch, padded on the right with token 0, and its attention mask.

    Returns:
        `tuple[Tensor, Tensor]`: ids and mask, each of shape (B, L), for B sequences of which the longest has L tokens.
    """
    rows = [torch.tensor(ids, dtype=torch.long) for ids in sequences]
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(device)
        for batch in (rows, [torch.ones_like(row) for row in rows])
    )
    return ids, mask


def padded_groups(
    sequences: Sequence[Sequence[int]], max_rows: int, device: torch.device
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches of sequences of like length, see [`groups_by_length`]: their indices, ids and mask (see [`padded`])."""
    if not sequences:
        return
    lengths = torch.tensor([len(ids) for ids in sequences], device=device)
    for group in groups_by_length(lengths, max_rows):
        indices = group.tolist()
        yield indices, *padded([sequences[index] for index in indices], device)
