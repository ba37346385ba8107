"""What a batch says of its tokens, row by row: a row of one side has the place of a chosen side, and nothing in it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


def by_row(values: Tensor, places: Tensor) -> Tensor:
    """Numbers of the sides of a batch, brought to its rows.

    Args:
        values (`Tensor`):
            Shape (S, ...), one entry for each side in the order of [`DataCollatorForTokenReward`].
        places (`Tensor`):
            Where the sides of each row are, -1 for one that it lacks. Shape (B, 2).

    Returns:
        `Tensor`: Shape (B, 2, ...), chosen before rejected. In the place of a side that is not there, is another one's.
    """
    return values[places.clamp(min=0)]


class Labels(NamedTuple):
    """The labels of a batch of B rows, chosen before rejected.

    Args:
        edited (`Tensor`):
            How much each edited token weighs: 1, or the severity of what is wrong with it; 0 for all others. Shape
            (B, 2, L).
        unchanged (`Tensor`):
            How much each other token of the completion weighs: 1, or 0 for one without a label. Shape (B, 2, L).
        is_pair (`Tensor`):
            Whether a row has two sides. Shape (B,).
        places (`Tensor`):
            For [`by_row`]. Shape (B, 2).
    """

    edited: Tensor
    unchanged: Tensor
    is_pair: Tensor
    places: Tensor

    def counts(self, rank: bool) -> Tensor:
        """What the losses of sequences, of edited and of unchanged tokens are means over: pairs and weights. Shape
        (3,).

        Args:
            rank (`bool`):
                Whether the loss of edited tokens is a mean over the rows that have some.
        """
        edits = (self.edited > 0).flatten(1).any(-1) if rank else self.edited
        return torch.stack([self.is_pair.sum(), edits.sum(), self.unchanged.sum()]).float()


def read_labels(batch: dict[str, Any], use_anchors: bool) -> Labels:
    """The labels of a batch of [`DataCollatorForTokenReward`]. One without `places` holds pairs alone.

    Raises:
        ValueError: If the batch has no masks.
    """
    edited = _mask(batch, "edit_mask")
    if use_anchors:
        edited = edited | _mask(batch, "anchor_mask")
    unchanged = _mask(batch, "completion_mask") & ~edited
    places = batch.get("places")
    if places is None:
        places = torch.arange(len(edited), device=edited.device).view(2, -1).T
    weights = batch.get("token_weights", torch.ones((), device=edited.device))
    there = (places >= 0).unsqueeze(-1)
    return Labels(
        edited=by_row(edited * weights, places) * there,
        unchanged=by_row(unchanged * weights, places) * there,
        is_pair=places[:, 0] >= 0,
        places=places,
    )


def _mask(batch: dict[str, Any], name: str) -> Tensor:
    if name not in batch:
        raise ValueError(
            f"The batch has no `{name}`. The data collator must give what `DataCollatorForTokenReward` gives."
        )
    return batch[name].bool()
