"""Offsets of annotation tools, in texts whose characters count differently in each unit."""

import random

import pytest

from trl_tokenreward.data.annotation_tools.offsets import (
    BYTES,
    CODE_POINTS,
    GRAPHEMES,
    OFFSETS,
    UTF_16,
    Mark,
    Spans,
    read_offsets,
)


pytestmark = pytest.mark.any_trl

# An emoji of four code points and seven UTF-16 units, and an e with an accent of two code points.
TEXT = "👨🏻‍🚒 cafe\u0301 bad end"
BAD = TEXT.index("bad")


def mark(start, end, text=None, label="wrong"):
    return Mark(start, end, (label,), text)


def in_units(place, unit):
    """The place of a code point, counted in another way."""
    before = TEXT[:place]
    sizes = {CODE_POINTS: len, UTF_16: lambda t: len(t.encode("utf-16-le")) // 2, BYTES: lambda t: len(t.encode())}
    return sizes[unit](before) if unit in sizes else len(before) - 3 - 1


def counted(unit, text="bad"):
    start = in_units(BAD, unit)
    return mark(start, start + 3, text)


def test_the_units_differ_in_the_text():
    assert [in_units(BAD, unit) for unit in (CODE_POINTS, UTF_16, GRAPHEMES, BYTES)] == [11, 14, 7, 23]


@pytest.mark.parametrize("unit", OFFSETS)
def test_the_spans_own_text_tells_the_unit(unit):
    assert read_offsets(TEXT, [counted(unit)], OFFSETS) == Spans([(BAD, BAD + 3)], unit)


@pytest.mark.parametrize("unit", OFFSETS)
def test_the_unit_may_be_given(unit):
    assert read_offsets(TEXT, [counted(unit, None)], given=unit) == Spans([(BAD, BAD + 3)], unit)


def test_without_proof_nothing_is_marked():
    with pytest.raises(ValueError, match="may count code-points or utf-16.*Hint. Say so with `offsets`"):
        read_offsets(TEXT, [counted(UTF_16, None)], hint="Hint. ")
    # Outside of the text in code points, which does not prove UTF-16.
    with pytest.raises(ValueError, match=r"\[16, 19\).*within the 18 characters.*fits with `offsets='utf-16'`"):
        read_offsets(TEXT, [mark(16, 19)])
    # One mark tells for all of the same annotator only if each has a text.
    with pytest.raises(ValueError, match="should have the text 'bad', but the annotated text there is ' en'"):
        read_offsets(TEXT, [counted(UTF_16), mark(18, 20)])


def test_a_text_that_stands_twice_tells_nothing():
    with pytest.raises(ValueError, match="nothing tells which"):
        read_offsets("😀aaaa", [mark(2, 4, "aa")])


def test_an_exact_text_goes_before_one_with_other_white_space():
    text = "😀 a bad x"
    assert read_offsets(text, [mark(4, 8, " bad")]) == Spans([(3, 7)], UTF_16)
    assert read_offsets(text, [mark(3, 7, " bad")]) == Spans([(3, 7)], CODE_POINTS)


def test_half_of_a_character_is_no_place_in_it():
    """So these can only be code points."""
    assert read_offsets("a😀b", [mark(1, 2)]) == Spans([(1, 2)], CODE_POINTS)


@pytest.mark.parametrize("text", ["plain text", "cafés", "\r\nline"])
def test_where_all_units_are_the_same_nothing_need_tell(text):
    assert read_offsets(text, [mark(0, 4)]) == Spans([(0, 4)], CODE_POINTS)
    assert read_offsets("😀 is here", [mark(2, 4, "is"), mark(2, 4, "is")]).unit == CODE_POINTS
    assert read_offsets("", []) == Spans([], CODE_POINTS)


def test_graphemes_are_told_from_code_points():
    with pytest.raises(ValueError, match="may count code-points or utf-16 or graphemes"):
        read_offsets("a\r\nbc", [mark(3, 4)], OFFSETS)


def test_label_studio_writes_line_breaks_and_white_space_its_own_way():
    text = "one\n two  three"
    assert read_offsets(text, [mark(0, 8, "one\\n two"), mark(5, 15, "two three")]).places == [(0, 8), (5, 15)]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([counted(BYTES)], r"\[23, 26\).*within the 18 characters.*It fits if the offsets count UTF-8 bytes"),
        ([mark(3, 3)], r"the span \[3, 3\) of 'wrong' must lie within the 18 characters"),
        ([mark(-1, 3)], r"\[-1, 3\)"),
        ([mark(5, 2)], r"\[5, 2\)"),
        ([mark(0, 99)], r"\[0, 99\)"),
        ([counted(CODE_POINTS, "good")], "should have the text 'good', but the annotated text there is 'bad'.$"),
        (
            [counted(CODE_POINTS), counted(UTF_16)],
            "should have the text 'bad', but the annotated text there is ' en'.$",
        ),
    ],
)
def test_what_does_not_fit_is_refused(marks, message):
    with pytest.raises(ValueError, match=message):
        read_offsets(TEXT, marks)


def test_the_given_unit_is_checked_too():
    with pytest.raises(
        ValueError, match="It fits with `offsets='code-points'`; on the command line: --offsets code-points"
    ):
        read_offsets(TEXT, [counted(CODE_POINTS)], given=UTF_16)


def test_random_texts_come_back_in_each_unit():
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choice("ab \n😀é中🚒") for _ in range(12))
        start = generator.randrange(11)
        end = generator.randrange(start + 1, 12)
        for size, unit in ((len, CODE_POINTS), (lambda t: len(t.encode("utf-16-le")) // 2, UTF_16)):
            marks = [Mark(size(text[:start]), size(text[:end]), ("wrong",), text[start:end])]
            assert read_offsets(text, marks, given=unit).places == [(start, end)]
            try:
                assert read_offsets(text, marks).places == [(start, end)]
            except ValueError as error:  # the same characters stand at both places
                assert "nothing tells which" in str(error)
