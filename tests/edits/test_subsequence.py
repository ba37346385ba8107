"""Long sequences are aligned in parts: the result is the whole's, and the parts are small."""

from random import Random
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from trl_tokenreward.edits import _subsequence
from trl_tokenreward.edits._subsequence import common_blocks


pytestmark = pytest.mark.any_trl


def whole(first: list[int], second: list[int]) -> list[list[int]]:
    """What rapidfuzz keeps of the uncut sequences."""
    opcodes = Indel.opcodes(first, second)
    return [[op.src_start, op.dest_start, op.src_end - op.src_start] for op in opcodes if op.tag == "equal"]


def edit(rng: Random, original: list[int], vocabulary: int, rate: float = 0.1) -> list[int]:
    edited = []
    for element in original:
        kind = rng.choice(["delete", "insert", "replace"]) if rng.random() < rate else "keep"
        new = rng.randrange(vocabulary)
        edited += {"delete": [], "insert": [element, new], "replace": [new]}.get(kind, [element])
    return edited


def small_parts(gram: int = 2, part: int = 2):
    return mock.patch.multiple(_subsequence, WHOLE=3, PART=part, GRAM=gram, ANCHOR=4)


@st.composite
def pairs(draw) -> tuple[list[int], list[int]]:
    """Edits, and moved and repeated passages, of sequences from few to many different elements."""
    vocabulary = draw(st.sampled_from([2, 3, 6, 30, 300]))
    rng = Random(draw(st.integers(0, 2**32)))
    first = [rng.randrange(vocabulary) for _ in range(draw(st.integers(0, 120)))]
    second = edit(rng, first, vocabulary, draw(st.sampled_from([0.02, 0.1, 0.3])))
    for _ in range(draw(st.integers(0, 2))):
        start, length, place = (draw(st.integers(0, limit)) for limit in (len(second), 12, len(second)))
        passage = second[start : start + length]
        if draw(st.booleans()):
            del second[start : start + length]
        second[place:place] = passage
    return (first, second) if draw(st.booleans()) else (second, first)


@settings(deadline=None, max_examples=400)
@given(pairs(), st.sampled_from([2, 3]), st.sampled_from([1, 2, 8]))
def test_parts_give_what_the_whole_gives(pair, gram, part):
    with small_parts(gram, part):
        assert common_blocks(*pair) == whole(*pair)


def kept(first: list[int], second: list[int], forbidden: tuple[int, int] | None) -> float:
    """Elements that an alignment can keep if its path does not go through one point of the grid."""
    rows = []
    for i in range(len(first) + 1):
        row = []
        for j in range(len(second) + 1):
            ways = [0.0] if i == j == 0 else []
            ways += [rows[i - 1][j]] if i else []
            ways += [row[j - 1]] if j else []
            ways += [rows[i - 1][j - 1] + 1] if i and j and first[i - 1] == second[j - 1] else []
            row.append(float("-inf") if (i, j) == forbidden else max(ways))
        rows.append(row)
    return rows[-1][-1]


@settings(deadline=None, max_examples=100)
@given(pairs().filter(lambda pair: min(map(len, pair)) > 0))
@example((list(range(20)), [*range(9), 50, *range(9, 20)]))
def test_every_longest_subsequence_goes_through_the_cuts(pair):
    with small_parts():
        points = _subsequence._sure_points(*pair)
    assert points == sorted(points)
    for point in points[:: max(len(points) // 3, 1)]:
        assert kept(*pair, forbidden=point) < kept(*pair, forbidden=None)


# "of the" and its like are everywhere: a Zipf distribution has such words, uniform draws have not.
@pytest.mark.parametrize("power", [0, 1])
def test_long_edited_texts_are_cut_to_small_parts(power):
    rng = Random(0)
    weights = [1 / rank**power for rank in range(1, 3001)]
    first = rng.choices(range(3000), weights, k=16_000)
    second = edit(rng, first, 3000)
    points = [(0, 0), *_subsequence._sure_points(first, second), (len(first), len(second))]
    assert max(end[0] - start[0] for start, end in zip(points, points[1:], strict=False)) < 2000
    assert common_blocks(first, second) == whole(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0] * 9000, [0] * 8500),
        ([0, 1] * 4500, [1, 0] * 4500),
        (list(range(9000)), list(range(9000, 18000))),
        (list(range(9000)), list(range(9000))),
        (list(range(9000)), [*range(4500, 9000), *range(4500)]),
    ],
    ids=["one element", "shifted", "nothing in common", "same", "halves swapped"],
)
def test_hard_cases_of_full_length(first, second):
    assert common_blocks(first, second) == whole(first, second)
