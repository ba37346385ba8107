"""Mini-batches of a rollout, in groups of rows that go through the models together."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor

from ..nn.unpadding import group_sizes, right_packed, state_columns
from .prompts import join
from .rollout import Rollout


def packed_groups(rollout: Rollout, rows: Tensor, accelerator: Accelerator, max_rows: int) -> list[dict[str, Any]]:
    """This process's share of one mini-batch, in groups of rows of like length, without padding.

    Tensors of completion tokens are flat, (N,), row by row. Every process has as many groups as the others, with rows
    of much the same lengths.

    Args:
        rollout ([`~ppo.rollout.Rollout`]):
            The update's completions.
        rows (`Tensor`):
            The rows of the mini-batch.
        accelerator (`Accelerator`):
            The processes.
        max_rows (`int`):
            Most rows in a group.
    """
    lengths = (rollout.prompt_mask.sum(1) + rollout.completion_mask.sum(1)).cpu()
    rows = rows[lengths[rows].argsort(descending=True, stable=True)]
    processes = accelerator.num_processes
    # The sorted rows are dealt out in turn; in each round the first process gets the longest.
    longest = lengths[rows[::processes]].tolist()
    sizes = group_sizes(longest, max_rows, rollout.returns.device.type)
    num_tokens = rollout.completion_mask[rows].sum()
    groups = []
    for group in rows[accelerator.process_index :: processes].split(sizes):
        batch = rollout.rows(group)
        mask = batch.completion_mask.bool()
        input_ids, _ = right_packed(*join(batch.prompts, batch.completion_ids, batch.completion_mask))
        groups.append(
            {
                "input_ids": input_ids,
                "columns": state_columns(batch.prompt_mask.sum(1), mask.sum(1), input_ids.shape[1]),
                "old_per_token_logps": batch.per_token_logps[mask],
                "old_values": batch.values[mask],
                "advantages": batch.advantages[mask],
                "returns": batch.returns[mask],
                "num_tokens": num_tokens,
            }
        )
    return groups
