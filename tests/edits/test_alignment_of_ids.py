"""Alignment of ids: a part of the tests of alignment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from alignment_cases import check, mirror
from trl_tokenreward import EditAlignment, EditOperation, align_ids


pytestmark = pytest.mark.any_trl


class TestAlignIds:
    def test_bare_ids(self):
        alignment = align_ids([5, 6, 6, 7], [5, 6, 8, 7])
        assert alignment == EditAlignment(
            original_ids=[5, 6, 6, 7],
            edited_ids=[5, 6, 8, 7],
            original_mask=[False, False, True, False],
            edited_mask=[False, False, True, False],
            original_anchors=[False] * 4,
            edited_anchors=[False] * 4,
            operations=[EditOperation("replace", (0, 0), (0, 0), (2, 3), (2, 3))],
            edit_ratio=2 / 8,
        )

    @pytest.mark.parametrize(
        ("original", "edited", "original_mask", "edited_anchors"),
        [
            ([1, 2, 2, 3], [1, 2, 3], [0, 0, 1, 0], [0, 0, 1]),
            ([1, 2, 1, 2, 1, 2], [1, 2], [0, 0, 1, 1, 1, 1], [0, 1]),
            ([0, 0], [0], [0, 1], [1]),
            ([1, 2], [], [1, 1], []),
            ([], [], [], []),
        ],
    )
    def test_a_deletion_is_put_as_late_as_can_be(self, original, edited, original_mask, edited_anchors):
        alignment = align_ids(original, edited)
        assert alignment.original_mask == original_mask
        assert alignment.edited_mask == [False] * len(edited)
        assert alignment.edited_anchors == edited_anchors

    def test_ids_are_compared_themselves_and_not_their_hashes(self):
        assert hash(2**61 - 1) == hash(0)
        assert align_ids([2**61 - 1], [0]).original_mask == [True]

    @given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12), st.integers(0, 12))
    def test_a_deleted_block_is_the_last_that_explains_the_edit(self, ids, start, size):
        start = min(start, len(ids))
        size = min(size, len(ids) - start)
        edited = ids[:start] + ids[start + size :]
        last = max(i for i in range(len(ids) - size + 1) if ids[:i] + ids[i + size :] == edited)
        assert align_ids(ids, edited).original_mask == [last <= i < last + size for i in range(len(ids))]

    @given(st.lists(st.integers(-2, 3), max_size=20), st.lists(st.integers(-2, 3), max_size=20))
    def test_what_is_kept_is_maximal(self, original, edited):
        alignment = align_ids(original, edited)
        masked = sum(alignment.original_mask) + sum(alignment.edited_mask)
        assert masked == Indel.distance(original, edited)
        check(alignment)
        assert mirror(align_ids(edited, original)) == alignment
