"""Alignment properties: a part of the tests of alignment."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

import tiny
from alignment_cases import KINDS, check, cut_words, mirror, tokenizer
from trl_tokenreward import align_edits, align_ids
from trl_tokenreward.edits.alignment import TokenizedText, align_tokenized


pytestmark = pytest.mark.any_trl


ALL_KINDS = [*KINDS, "trimmed", "unsplit", "normalized"]


FRAGMENTS = [
    *(" ", " ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c"),
    *(
        "the",
        "The",
        " the",
        "fox",
        "movie",
        " movie",
        "terrific.",
        "aren't",
        "are",
        "no-thanks",
        "x_1",
        "3.14",
        "don’t",
    ),
    *(".", ". ", "!", "...", "'", "’", "-", "“", "<eos>", "<pad>", "▁", "Ġ", "##"),
    *("👍🏽", "👍", "👩‍👩‍👧", "🇫🇷", "1️⃣", "e\u0301", "\u0301", "ﬁ", "½", "İ", "ß", "\u200b", "\u200d", "\ufeff", "\x00"),
    *("שלום", "שָׁלוֹם", "می‌خواهم", "日本", "語", "。", "ラーメン", "ดีมาก", "한국어", "ကောင်း", "हिन्दी"),
]


pieces = st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=3)


@st.composite
def edited_pairs(draw) -> tuple[str, str]:
    original = draw(st.lists(pieces, max_size=14))
    edited = list(original)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(edited)))
        edited[start : start + draw(st.integers(0, 3))] = draw(st.lists(pieces, max_size=2))
    return "".join(original), "".join(edited)


@pytest.mark.parametrize("kind", ALL_KINDS)
class TestProperties:
    @settings(deadline=None, max_examples=150)
    @given(pair=edited_pairs())
    def test_of_an_edited_text(self, kind, pair):
        original, edited = pair
        alignment = align_edits(original, edited, tokenizer(kind))
        check(alignment)
        assert alignment == align_edits(original, edited, tokenizer(kind))
        assert mirror(align_edits(edited, original, tokenizer(kind))) == alignment
        # The characters outside the operations are the same ones, and in the same places between the operations.
        for end, start in zip(
            [(0, 0), *((op.original_chars[1], op.edited_chars[1]) for op in alignment.operations)],
            [
                *((op.original_chars[0], op.edited_chars[0]) for op in alignment.operations),
                (len(original), len(edited)),
            ],
            strict=True,
        ):
            assert original[end[0] : start[0]] == edited[end[1] : start[1]]

    @settings(deadline=None, max_examples=50)
    @given(original=st.lists(pieces, max_size=8).map("".join), edited=st.lists(pieces, max_size=8).map("".join))
    def test_of_unrelated_texts(self, kind, original, edited):
        alignment = align_edits(original, edited, tokenizer(kind))
        check(alignment)
        assert mirror(align_edits(edited, original, tokenizer(kind))) == alignment

    @settings(deadline=None, max_examples=50)
    @given(text=st.lists(pieces, max_size=14).map("".join))
    def test_of_identical_texts(self, kind, text):
        alignment = align_edits(text, text, tokenizer(kind))
        assert not any(alignment.original_mask) and not any(alignment.edited_mask)
        assert not any(alignment.original_anchors) and not any(alignment.edited_anchors)
        assert alignment.operations == [] and alignment.edit_ratio == 0

    @settings(deadline=None, max_examples=50)
    @given(
        original=st.lists(st.sampled_from(tiny.CORPUS[3].split()), min_size=1, max_size=12),
        start=st.integers(0, 12),
        size=st.integers(0, 3),
        new=st.lists(st.sampled_from(["lousy", "movie", "food,"]), max_size=3),
    )
    def test_no_word_is_cut(self, kind, original, start, size, new):
        edited = original[:start] + new + original[start + size :]
        original, edited = " ".join(original), " ".join(edited)
        alignment = align_edits(original, edited, tokenizer(kind))
        for text, mask in ((original, alignment.original_mask), (edited, alignment.edited_mask)):
            offsets = tokenizer(kind)(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
            assert cut_words(text, offsets, mask) == []


class TestErrors:
    @pytest.mark.parametrize(
        ("original", "edited", "name"), [(None, "a", "original"), ("a", 1, "edited"), (["a"], "a", "original")]
    )
    def test_not_a_text(self, original, edited, name):
        with pytest.raises(TypeError, match=f"`{name}` must be a str"):
            align_edits(original, edited, tokenizer("bpe"))
        with pytest.raises(TypeError, match=f"`{name}` must be a str"):
            align_tokenized(original, edited, TokenizedText([], []), TokenizedText([], []))

    def test_slow_tokenizer(self):
        with pytest.raises(ValueError, match="ByT5Tokenizer gives no character offsets.*load a fast tokenizer"):
            align_edits("a", "b", ByT5Tokenizer())

    def test_ids_without_offsets(self):
        with pytest.raises(ValueError, match="`edited_tokens` has 2 ids but 1 offsets"):
            align_tokenized("a", "ab", TokenizedText([1], [(0, 1)]), TokenizedText([1, 2], [(0, 1)]))

    @pytest.mark.parametrize("offsets", [(0, 3), (-1, 1), (2, 1)])
    def test_offsets_outside_the_text(self, offsets):
        with pytest.raises(ValueError, match="`original_tokens` has the offsets .* at token 0, outside its text of 2"):
            align_tokenized("ab", "ab", TokenizedText([1], [offsets]), TokenizedText([1], [(0, 2)]))

    @pytest.mark.parametrize("ids", ["abc", [1.5], [None], 3])
    def test_not_ids(self, ids):
        with pytest.raises(TypeError, match="`edited_ids` must be a sequence of integers"):
            align_ids([1], ids)
