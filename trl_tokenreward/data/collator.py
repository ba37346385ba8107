"""Padded batches of prepared rows."""

from dataclasses import dataclass

import torch
from transformers.data.data_collator import DataCollatorMixin

from .._trl import pad
from .formats import SIDES, ColumnError, Row
from .preprocessing import MASKS, PREPARED_COLUMNS, WEIGHTS, complete_ids_row, prepared_sides


@dataclass
class DataCollatorForTokenReward(DataCollatorMixin):
    """
    Data collator for token reward modelling. Rows are padded on the right to the longest of the batch.

    Rows need `"chosen_ids"` and `"rejected_ids"`, or are of one side and have `"rejected_ids"` and
    `"rejected_edit_mask"`. Those without masks are completed by [`~data.preprocessing.complete_ids_row`], so the
    collator can stand behind any tokenized preference data set. Of B rows, P of them pairs, the batch holds tensors of
    shape (P + B, L): first the chosen sides of the pairs, then their rejected sides, then the rows of one side, so that
    these cost no empty second side:

    - `"input_ids"` and `"attention_mask"`, integers;
    - `"completion_mask"`, `"edit_mask"` and `"anchor_mask"`, Booleans;
    - `"token_weights"`, numbers, if a row has `"rejected_token_weights"`;

    and, of shape (B, 2), `"places"`: where in the batch the chosen and the rejected side of each row are, in the order
    of the rows, with -1 for the chosen side that a row lacks; and `"margin"`, of shape (B,), if a row has one (0
    for the others).

    Args:
        pad_token_id (`int`):
            Token ID to use for padding. Any id works, also the EOS token's: the masks tell padding apart.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences are padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Only `"pt"` is supported.

    Examples:
    ```python
    >>> from trl_tokenreward import DataCollatorForTokenReward

    >>> collator = DataCollatorForTokenReward(pad_token_id=0)
    >>> batch = collator([{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}])
    >>> batch["input_ids"]
    tensor([[5, 6, 7],
            [5, 8, 0]])
    >>> batch["edit_mask"]
    tensor([[False,  True,  True],
            [False,  True, False]])
    >>> batch["places"]
    tensor([[0, 1]])
    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[Row]) -> dict[str, torch.Tensor]:
        rows = []
        for index, row in enumerate(examples):
            try:
                rows.append(row if _is_prepared(row) else complete_ids_row(row))
            except ColumnError as error:
                raise ValueError(f"Row {index} of the batch, {error}") from error
        pairs = [index for index, row in enumerate(rows) if len(prepared_sides(row)) == len(SIDES)]
        alone = [index for index, row in enumerate(rows) if len(prepared_sides(row)) == 1]
        order = [*((index, side) for side in SIDES for index in pairs), *((index, "rejected") for index in alone)]
        ids = [torch.tensor(rows[index][f"{side}_ids"]) for index, side in order]
        batch = {
            "input_ids": self._pad(ids, self.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in ids], 0),
        }
        for name in MASKS:
            masks = [torch.tensor(rows[index][f"{side}_{name}"], dtype=torch.bool) for index, side in order]
            batch[name] = self._pad(masks, False)
        if any(row.get(WEIGHTS) is not None for row in rows):
            weights = [
                torch.ones(len(rows[index][f"{side}_ids"]))
                if side == "chosen" or rows[index].get(WEIGHTS) is None
                else torch.tensor(rows[index][WEIGHTS], dtype=torch.float)
                for index, side in order
            ]
            batch["token_weights"] = self._pad(weights, 1.0)
        batch["places"] = torch.full((len(rows), 2), -1)
        for place, (index, side) in enumerate(order):
            batch["places"][index, SIDES.index(side)] = place
        if any(row.get("margin") is not None for row in examples):
            margins = [row.get("margin") or 0.0 if index in pairs else 0.0 for index, row in enumerate(examples)]
            batch["margin"] = torch.tensor(margins, dtype=torch.float)
        return batch

    def _pad(self, rows: list[torch.Tensor], value: float) -> torch.Tensor:
        return pad(rows, padding_value=value, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)


def _is_prepared(row: Row) -> bool:
    return all(row.get(column) is not None for column in PREPARED_COLUMNS if column.startswith(prepared_sides(row)))
