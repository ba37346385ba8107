"""Right-packed batches and groups of like length."""

import itertools
import random

import pytest
import torch

from trl_tokenreward.nn import unpadding as packing
from trl_tokenreward.nn.unpadding import group_sizes, groups_by_length, right_packed, state_columns


pytestmark = pytest.mark.any_trl


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


def test_groups_hold_each_row_once_and_rows_of_like_length(monkeypatch):
    monkeypatch.setitem(packing._TOKENS_PER_START, "cpu", 8)
    lengths = torch.tensor([3, 50, 4, 48, 5, 49, 2])
    groups = [group.tolist() for group in groups_by_length(lengths, max_rows=3)]
    assert groups == [[1, 5, 3], [4, 2], [0, 6]]


@pytest.mark.parametrize(
    ("lengths", "max_rows", "expected"),
    [
        ([10, 10, 10, 10], 4, [4]),
        ([10, 10, 10, 10], 3, [1, 3]),
        ([30, 30, 30, 30], 4, [2, 2]),  # two rows of 30 are within 64 tokens, four are not
        ([32, 12, 12, 12], 4, [1, 3]),  # 40 tokens of padding are more than a pass costs
        ([12, 12, 12, 10], 4, [4]),  # two are less
        ([100, 100], 4, [1, 1]),  # a row by itself may have more tokens
        ([7], 4, [1]),
        ([], 4, []),
    ],
)
def test_group_sizes(lengths, max_rows, expected, monkeypatch):
    monkeypatch.setitem(packing._TOKENS_PER_PASS, "cpu", 64)
    monkeypatch.setitem(packing._TOKENS_PER_START, "cpu", 8)
    assert group_sizes(lengths, max_rows, "cpu") == expected


def test_no_other_groups_cost_less(monkeypatch):
    monkeypatch.setitem(packing._TOKENS_PER_PASS, "cpu", 40)
    monkeypatch.setitem(packing._TOKENS_PER_START, "cpu", 6)
    rng = random.Random(0)
    for _ in range(50):
        lengths = sorted((rng.randint(1, 20) for _ in range(8)), reverse=True)
        # Every way to cut eight rows: a bit for each place between two.
        divisions = []
        for bits in itertools.product((False, True), repeat=7):
            cuts = [0, *(place + 1 for place, cut in enumerate(bits) if cut), 8]
            divisions.append([b - a for a, b in itertools.pairwise(cuts)])

        def cost(sizes, lengths=lengths):
            begins = [0, *itertools.accumulate(sizes)]
            tokens = [lengths[begin] * size for begin, size in zip(begins, sizes, strict=False)]
            allowed = all(size == 1 or (size <= 4 and t <= 40) for size, t in zip(sizes, tokens, strict=True))
            return sum(tokens) + 6 * len(sizes) if allowed else float("inf")

        assert cost(group_sizes(lengths, 4, "cpu")) == min(map(cost, divisions))
