"""Right-packed batches and groups of like length."""

import pytest
import torch

from trl_tokenreward import packing
from trl_tokenreward.packing import groups_by_length, number_of_groups, right_packed, state_columns


def test_real_tokens_come_first_in_their_order():
    ids = torch.tensor([[9, 9, 5, 6, 7, 9], [1, 2, 9, 3, 9, 4]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 1, 0, 1]])
    packed, columns = right_packed(ids, mask)
    assert packed.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4]]  # 9, in the padding, is gone
    assert columns[0, :3].tolist() == [2, 3, 4] and columns[1].tolist() == [0, 1, 3, 5]


def test_a_token_is_predicted_one_column_before_it():
    # Two tokens of prompt and three of completion; four and one; one and two.
    columns = state_columns(torch.tensor([2, 4, 1]), torch.tensor([3, 1, 2]), width=5)
    assert columns.tolist() == [1, 2, 3, 5 + 3, 10 + 0, 10 + 1]


def test_groups_hold_each_row_once_and_rows_of_like_length():
    lengths = torch.tensor([3, 50, 4, 48, 5, 49, 2])
    groups = [group.tolist() for group in groups_by_length(lengths, max_rows=3)]
    assert groups == [[1, 5, 3], [4, 2], [0, 6]]


@pytest.mark.parametrize(
    ("lengths", "max_rows", "expected"),
    [
        ([10, 10, 10, 10], 4, 1),
        ([10, 10, 10, 10], 3, 2),
        ([30, 30, 30, 30], 4, 2),  # two rows of 30 are within 64 tokens, four are not
        ([60, 10, 10, 10], 4, 4),  # 60 beside 10 would be 120, padding included; and groups have equally many rows
        ([100, 100], 4, 2),  # a row by itself may have more
        ([7], 4, 1),
    ],
)
def test_number_of_groups(lengths, max_rows, expected, monkeypatch):
    monkeypatch.setitem(packing._TOKENS_PER_PASS, "cpu", 64)
    assert number_of_groups(torch.tensor(lengths), max_rows, "cpu") == expected
