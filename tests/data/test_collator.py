"""Collator: a part of the tests of preprocessing."""

import pytest
import torch

from preference_cases import IDS
from trl_tokenreward.data.collator import DataCollatorForTokenReward
from trl_tokenreward.data.preprocessing import MASKS


class TestCollator:
    ROWS = [
        {
            "chosen_ids": [4, 5, 6],
            "rejected_ids": [4, 7],
            "chosen_completion_mask": [0, 1, 1],
            "rejected_completion_mask": [0, 1],
            "chosen_edit_mask": [0, 1, 0],
            "rejected_edit_mask": [0, 1],
            "chosen_anchor_mask": [0, 0, 1],
            "rejected_anchor_mask": [0, 0],
        },
        {
            "chosen_ids": [8],
            "rejected_ids": [8, 9, 9, 9],
            "chosen_completion_mask": [1],
            "rejected_completion_mask": [1, 1, 1, 1],
            "chosen_edit_mask": [0],
            "rejected_edit_mask": [0, 1, 1, 1],
            "chosen_anchor_mask": [1],
            "rejected_anchor_mask": [0, 0, 0, 0],
        },
    ]

    def test_golden(self):
        batch = DataCollatorForTokenReward(pad_token_id=3)(self.ROWS)
        assert {key: value.long().tolist() for key, value in batch.items()} == {
            "input_ids": [[4, 5, 6, 3], [8, 3, 3, 3], [4, 7, 3, 3], [8, 9, 9, 9]],
            "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
            "completion_mask": [[0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]],
            "edit_mask": [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]],
            "anchor_mask": [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            "places": [[0, 2], [1, 3]],
        }
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.long
        assert all(batch[name].dtype == torch.bool for name in MASKS)

    def test_pad_to_multiple_of(self):
        batch = DataCollatorForTokenReward(pad_token_id=0, pad_to_multiple_of=8)(self.ROWS)
        assert {tuple(value.shape) for name, value in batch.items() if name != "places"} == {(4, 8)}

    def test_the_pad_token_may_be_eos(self):
        rows = [{"chosen_ids": [5, 1], "rejected_ids": [6, 7, 1]}]
        batch = DataCollatorForTokenReward(pad_token_id=1)(rows)
        assert batch["input_ids"].tolist() == [[5, 1, 1], [6, 7, 1]]
        assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]

    def test_margins(self):
        batch = DataCollatorForTokenReward(pad_token_id=0)([{**row, "margin": i} for i, row in enumerate(self.ROWS)])
        assert batch["margin"].dtype == torch.float and batch["margin"].tolist() == [0.0, 1.0]

    def test_ids_alone_are_aligned(self):
        batch = DataCollatorForTokenReward(pad_token_id=0)([IDS])
        assert batch["edit_mask"].long().tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
        assert batch["completion_mask"].long().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]

    def test_an_incomplete_row_is_named(self):
        with pytest.raises(ValueError, match="Row 1 of the batch, column `rejected_ids`: is missing"):
            DataCollatorForTokenReward(pad_token_id=0)([IDS, {"chosen_ids": [1]}])
