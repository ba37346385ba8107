"""Padded batches of prepared rows."""

from dataclasses import dataclass

import torch
from transformers.data.data_collator import DataCollatorMixin

from .._trl import pad
from .formats import SIDES, ColumnError, Row
from .preprocessing import MASKS, PREPARED_COLUMNS, complete_ids_row


@dataclass
class DataCollatorForTokenReward(DataCollatorMixin):
    """
    Data collator for token reward modelling. Rows are padded on the right to the longest of the batch.

    Rows need `"chosen_ids"` and `"rejected_ids"`. Those without masks are completed by
    [`~data.preprocessing.complete_ids_row`], so the collator can stand behind any tokenized preference data set. The
    batch of B rows holds tensors of shape (2B, L), the first half for the chosen sides and the second for the rejected
    ones:

    - `"input_ids"` and `"attention_mask"`, integers;
    - `"completion_mask"`, `"edit_mask"` and `"anchor_mask"`, Booleans;

    and `"margin"`, of shape (B,), if the rows have one.

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
    ```
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[Row]) -> dict[str, torch.Tensor]:
        rows = []
        for index, row in enumerate(examples):
            try:
                rows.append(row if all(column in row for column in PREPARED_COLUMNS) else complete_ids_row(row))
            except ColumnError as error:
                raise ValueError(f"Row {index} of the batch, {error}") from error
        ids = [torch.tensor(row[f"{side}_ids"]) for side in SIDES for row in rows]
        batch = {
            "input_ids": self._pad(ids, self.pad_token_id),
            "attention_mask": self._pad([torch.ones_like(row) for row in ids], 0),
        }
        for name in MASKS:
            masks = [torch.tensor(row[f"{side}_{name}"], dtype=torch.bool) for side in SIDES for row in rows]
            batch[name] = self._pad(masks, False)
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float)
        return batch

    def _pad(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad(rows, padding_value=value, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
