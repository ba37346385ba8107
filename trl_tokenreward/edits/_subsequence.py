"""The longest common subsequence of two sequences, for long ones in parts.

rapidfuzz finds it in time that grows with the product of the lengths. Two long sequences are cut where all of their
longest common subsequences agree, so that the parts hold what the whole would, down to the choice among several longest
ones.

An alignment is a path from corner to corner of a grid: a step along both sequences keeps an element, a step along one
of them costs 1 (it deletes or inserts an element); the longest subsequences are the cheapest paths. Let P be any path
and p a point on it. A path Q that avoids p leaves P at some point u before p and next meets it at a point v after p.
Wherever P keeps `GRAM` elements in a row between u and v which occur in that order only once in the second sequence, Q
pays at least 1: it cannot keep them all side by side without running on P. So if, for all u and v around p, there are
more of such runs, apart from each other, than P pays between u and v, Q is not cheapest (between u and v, P is
cheaper), and every cheapest path goes through p. Where u and v lie in one stretch that P keeps, P pays nothing and Q
does.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise

from rapidfuzz.distance import Indel


WHOLE = 8192  # Shorter sequences are not cut: rapidfuzz is done with them sooner than the cuts are found.
PART = 256  # The least length of a part.
GRAM = 3
ANCHOR = 8

Block = list[int]  # position in the first sequence, position in the second, length


def common_blocks(first: Sequence[int], second: Sequence[int]) -> list[Block]:
    """The stretches that a longest common subsequence of two sequences of integers from 0 on keeps. It is the one that
    rapidfuzz takes."""
    if min(len(first), len(second)) < WHOLE:
        return _kept(first, second)
    # rapidfuzz keeps what both begin and end with, whatever else it could keep.
    shortest = min(len(first), len(second))
    begin = next((n for n in range(shortest) if first[n] != second[n]), shortest)
    end = next((n for n in range(shortest - begin) if first[-1 - n] != second[-1 - n]), shortest - begin)
    corner = len(first) - end, len(second) - end
    middle = first[begin : corner[0]], second[begin : corner[1]]
    cuts = [(i + begin, j + begin) for i, j in _sure_points(*middle)] if min(map(len, middle)) >= WHOLE else []
    points = [(begin, begin), *cuts, corner]
    return _join([[0, 0, begin], *_path(first, second, points), [*corner, end]])


def _kept(first: Sequence[int], second: Sequence[int]) -> list[Block]:
    opcodes = Indel.opcodes(first, second)
    return [[op.src_start, op.dest_start, op.src_end - op.src_start] for op in opcodes if op.tag == "equal"]


def _path(first: Sequence[int], second: Sequence[int], points: list[tuple[int, int]]) -> list[Block]:
    """The cheapest path through all the points, as the stretches that it keeps."""
    fence = max(max(first), max(second)) + 1
    blocks = []
    for (i, j), (i_end, j_end) in pairwise(points):
        # Within a whole, what a part begins and ends with would not be kept first. Different elements around the parts
        # hide it from rapidfuzz and change nothing else.
        part = [fence, *first[i:i_end], fence + 1], [fence + 2, *second[j:j_end], fence + 3]
        blocks += [[i + start - 1, j + other - 1, length] for start, other, length in _kept(*part)]
    return _join(blocks)


def _join(blocks: list[Block]) -> list[Block]:
    joined: list[Block] = []
    for i, j, length in blocks:
        if joined and joined[-1][0] + joined[-1][2] == i and joined[-1][1] + joined[-1][2] == j:
            joined[-1][2] += length
        elif length:
            joined.append([i, j, length])
    return joined


def _sure_points(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Points, at least `PART` apart, that every cheapest path goes through (see this module's head)."""
    grams = [*zip(*(second[n:] for n in range(GRAM)), strict=False)]
    counts = Counter(grams)
    rare = [counts[gram] == 1 for gram in grams] + [False] * GRAM
    corner = len(first), len(second)
    path = _path(first, second, [(0, 0), *_likely_points(first, second, grams, rare), corner])

    # The surplus at a point of the path: the rare runs that end before it, less what is paid before it. Between two
    # points it grows by more than 0 if there are more rare runs than edits. Where a point lies within a run, the run
    # counts as being before the first point and after the last.
    surplus, before, runs = 0, [], []
    i_end = j_end = 0
    for i, j, length in [*path, [*corner, 0]]:
        surplus -= i - i_end + j - j_end
        i_end, j_end = i + length, j + length
        before.append(surplus)
        runs.append(_rare_runs(rare, j, length))
        surplus += len(runs[-1])
    lowest = list(accumulate(reversed(before), min))[::-1]  # from each block on

    points = []
    highest, last = 0, 0  # before each block
    for block, (i, j, _) in enumerate(path):
        for number, run_end in enumerate(runs[block], 1):
            if highest < before[block] + number < lowest[block + 1] and i + run_end >= last + PART:
                last = i + run_end
                points.append((last, j + run_end))
        highest = max(highest, before[block] + len(runs[block]))
    return points


def _likely_points(
    first: Sequence[int], second: Sequence[int], grams: list[tuple[int, ...]], rare: list[bool]
) -> list[tuple[int, int]]:
    """Points about `PART` apart in the midst of what looks like the same text."""
    places = {gram: j for j, gram in enumerate(grams)}
    points, reached = [], 0
    for target in range(PART, len(first) - PART, PART):
        for i in range(target, target + PART - ANCHOR):
            j = places.get(tuple(first[i : i + GRAM]), -1)
            if j >= reached and rare[j] and first[i : i + ANCHOR] == second[j : j + ANCHOR]:
                reached = j + ANCHOR
                points.append((i + ANCHOR // 2, j + ANCHOR // 2))
                break
    return points


def _rare_runs(rare: list[bool], start: int, length: int) -> list[int]:
    """Where rare runs of a block end, apart from each other, counted from the block's start."""
    ends, n = [], 0
    while n + GRAM <= length:
        if rare[start + n]:
            n += GRAM
            ends.append(n)
        else:
            n += 1
    return ends
