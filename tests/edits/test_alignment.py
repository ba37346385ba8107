"""Edit alignment: worked cases for every kind of tokenizer, properties over Unicode text, bounds on time, real
edits."""

import copy
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

import tiny
from alignment_cases import KINDS, check, cut_words, mirror, tokenizer
from shared_data import shared_file
from tiny import word_tokenizer
from trl_tokenreward import EditAlignment, EditOperation, align_edits, align_ids
from trl_tokenreward.edits.alignment import TokenizedText, align_tokenized, align_words


pytestmark = pytest.mark.any_trl


WORDS = (
    "This movie was terrific lousy my friends force couldn't keep eyes open they aren't are good No thanks no-thanks "
    "Standard standard above Above food the The fox jumps I would watch it Well this a b c ."
).split()


@cache
def whole_words(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that has learned every one of `WORDS` whole, so that its tokens can be told by hand."""
    corpus = list(WORDS)
    if kind == "bpe":  # a leading space belongs to the token
        corpus = [space + word for word in WORDS for space in ("", " ")]
    elif kind == "unigram":  # learns what different strings share
        corpus = [word + end for word in WORDS for end in ("", ".", ",", "!")]
    return tiny.tokenizer(kind, vocab_size=1000, corpus=corpus)


def tokens_where(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[bool]) -> list[str]:
    return [token for token, chosen in zip(tokenizer.convert_ids_to_tokens(ids), mask, strict=True) if chosen]


def edits_of(original: str, edited: str, alignment: EditAlignment) -> list[tuple[str, str, str]]:
    return [
        (op.kind, original[slice(*op.original_chars)], edited[slice(*op.edited_chars)]) for op in alignment.operations
    ]


def changed(kind: str, original: str, edited: str) -> tuple[list[str], list[str]]:
    alignment = align_edits(original, edited, whole_words(kind))
    return (
        tokens_where(whole_words(kind), alignment.original_ids, alignment.original_mask),
        tokens_where(whole_words(kind), alignment.edited_ids, alignment.edited_mask),
    )


CASES = {
    "replaced word": (
        ("This movie was terrific .", "This movie was lousy ."),
        {
            "bpe": (["Ġterrific"], ["Ġlousy"]),
            "metaspace": (["▁terrific"], ["▁lousy"]),
            "wordpiece": (["terrific"], ["lousy"]),
            "unigram": (["▁terrific"], ["▁lousy"]),
        },
    ),
    "one word by two": (
        ("friends force my eyes open", "friends couldn't keep my eyes open"),
        {
            "bpe": (["Ġforce"], ["Ġcouldn", "'t", "Ġkeep"]),
            "metaspace": (["▁force"], ["▁couldn't", "▁keep"]),
            "wordpiece": (["force"], ["couldn", "'", "t", "keep"]),
            "unigram": (["▁force"], ["▁couldn't", "▁keep"]),
        },
    ),
    "word with an apostrophe": (
        ("they aren't good", "they are good"),
        {
            "bpe": (["Ġaren", "'t"], ["Ġare"]),
            "metaspace": (["▁aren't"], ["▁are"]),
            "wordpiece": (["aren", "'", "t"], ["are"]),
            "unigram": (["▁aren't"], ["▁are"]),
        },
    ),
    "word joined to another": (
        ("No thanks .", "No no-thanks ."),
        {
            "bpe": (["Ġthanks"], ["Ġno", "-", "thanks"]),
            "metaspace": (["▁thanks"], ["▁no-thanks"]),
            "wordpiece": ([], ["no", "-"]),  # drops the space, so `thanks` is the same token
            "unigram": (["▁thanks"], ["▁no-thanks"]),
        },
    ),
    "word added at the start": (
        ("Standard food", "Above standard food"),
        {
            "bpe": (["Standard"], ["Above", "Ġstandard"]),
            "metaspace": (["▁Standard"], ["▁Above", "▁standard"]),
            "wordpiece": (["Standard"], ["Above", "standard"]),
            "unigram": (["▁Standard"], ["▁Above", "▁standard"]),
        },
    ),
    "word added before a kept one at the start": (
        ("This movie", "Well This movie"),
        {
            "bpe": (["This"], ["Well", "ĠThis"]),  # without its space `This` is another token
            "metaspace": ([], ["▁Well"]),
            "wordpiece": ([], ["Well"]),
            "unigram": ([], ["▁Well"]),
        },
    ),
    "duplicated word": (
        ("I would would watch it", "I would watch it"),
        {
            "bpe": (["Ġwould"], []),
            "metaspace": (["▁would"], []),
            "wordpiece": (["would"], []),
            "unigram": (["▁would"], []),
        },
    ),
    "change of case": (
        ("the movie", "The movie"),
        {
            "bpe": (["the"], ["The"]),
            "metaspace": (["▁the"], ["▁The"]),
            "wordpiece": (["the"], ["The"]),
            "unigram": (["▁the"], ["▁The"]),
        },
    ),
    "white space alone": (
        ("a  b c", "a b c"),
        {"bpe": (["Ġ"], []), "metaspace": (["▁"], []), "wordpiece": ([], []), "unigram": (["▁"], [])},
    ),
    "deletion alone": (
        ("the fox jumps", "the jumps"),
        {"bpe": (["Ġfox"], []), "metaspace": (["▁fox"], []), "wordpiece": (["fox"], []), "unigram": (["▁fox"], [])},
    ),
    "insertion alone": (
        ("the jumps", "the fox jumps"),
        {"bpe": ([], ["Ġfox"]), "metaspace": ([], ["▁fox"]), "wordpiece": ([], ["fox"]), "unigram": ([], ["▁fox"])},
    ),
    "empty original": (
        ("", "the fox"),
        {
            "bpe": ([], ["the", "Ġfox"]),
            "metaspace": ([], ["▁the", "▁fox"]),
            "wordpiece": ([], ["the", "fox"]),
            "unigram": ([], ["▁the", "▁fox"]),
        },
    ),
    "empty edit": (
        ("the fox", ""),
        {
            "bpe": (["the", "Ġfox"], []),
            "metaspace": (["▁the", "▁fox"], []),
            "wordpiece": (["the", "fox"], []),
            "unigram": (["▁the", "▁fox"], []),
        },
    ),
    "nothing": (("", ""), dict.fromkeys(KINDS, ([], []))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_worked_cases(case, kind):
    texts, expected = CASES[case]
    assert changed(kind, *texts) == expected[kind]


def test_the_whole_alignment_of_one_pair():
    alignment = align_edits("No thanks .", "No no-thanks . I would", whole_words("bpe"))
    ids = whole_words("bpe").convert_tokens_to_ids
    assert alignment == EditAlignment(
        original_ids=[ids("No"), ids("Ġthanks"), ids("Ġ.")],
        edited_ids=ids(["No", "Ġno", "-", "thanks", "Ġ.", "ĠI", "Ġwould"]),
        original_mask=[False, True, False],
        edited_mask=[False, True, True, True, False, True, True],
        original_anchors=[False, False, True],
        edited_anchors=[False] * 7,
        operations=[
            EditOperation("replace", (3, 9), (3, 12), (1, 2), (1, 4)),
            EditOperation("insert", (11, 11), (14, 22), (3, 3), (5, 7)),
        ],
        edit_ratio=6 / 10,
    )


@pytest.mark.parametrize(
    ("original", "edited", "original_anchors", "edited_anchors"),
    [
        ("the fox jumps", "the jumps", [], ["Ġjumps"]),
        ("the jumps", "the fox jumps", ["Ġjumps"], []),
        ("the fox jumps", "the fox", [], ["Ġfox"]),  # at the end the last token holds it
        ("the fox", "the fox jumps", ["Ġfox"], []),
        ("the fox", "", [], []),  # no token is there to hold it
        ("the fox jumps", "the lousy jumps", [], []),  # a replacement has tokens on both sides
        ("the fox jumps . I watch", "the jumps . I would watch", ["Ġwatch"], ["Ġjumps"]),
    ],
)
def test_anchors(original, edited, original_anchors, edited_anchors):
    alignment = align_edits(original, edited, whole_words("bpe"))
    assert tokens_where(whole_words("bpe"), alignment.original_ids, alignment.original_anchors) == original_anchors
    assert tokens_where(whole_words("bpe"), alignment.edited_ids, alignment.edited_anchors) == edited_anchors


@pytest.mark.parametrize("kind", ["bpe", "metaspace", "wordpiece", "unigram"])
def test_white_space_without_tokens_is_still_an_operation(kind):
    (operation,) = align_edits("a  b c", "a b c", whole_words(kind)).operations
    tokens = (1, 1) if kind == "wordpiece" else (1, 2)
    assert operation == EditOperation("delete", (1, 2), (1, 1), tokens, (1, 1))


@pytest.mark.parametrize(
    ("original", "edited", "edits"),
    [
        # emoji: a skin tone, a family held together by joiners, a flag, a keycap
        ("it was 👍🏽 there", "it was 👍 there", [("replace", "👍🏽", "👍")]),
        ("my 👩‍👩‍👧 here", "my 👩‍👧 here", [("replace", "👩‍👩‍👧", "👩‍👧")]),
        ("go 🇫🇷🇩🇪 go", "go 🇫🇷🇮🇹 go", [("replace", "🇩🇪", "🇮🇹")]),
        ("press 1️⃣ now", "press 2️⃣ now", [("replace", "1️⃣", "2️⃣")]),
        # combining marks stay with their base, and so with the word
        ("un e\u0301te\u0301 chaud", "un ete chaud", [("replace", "e\u0301te\u0301", "ete")]),
        ("the x\u0302 axis", "the x axis", [("replace", "x\u0302", "x")]),
        # right to left: letters with vowel signs, a word with a joiner
        ("שלום עולם טוב", "שלום ילד טוב", [("replace", "עולם", "ילד")]),
        ("שָׁלוֹם לך", "שלום לך", [("replace", "שָׁלוֹם", "שלום")]),
        ("من می‌خواهم کتاب", "من می‌خوانم کتاب", [("replace", "می‌خواهم", "می‌خوانم")]),
        # scripts without spaces: character by character, vowel signs with their consonants
        ("我 喜欢 狗 。", "我 喜欢 猫 。", [("replace", "狗", "猫")]),
        ("日本語です", "日本人です", [("replace", "語", "人")]),
        ("ラーメンが", "ラーメンは", [("replace", "が", "は")]),
        ("ดีมาก", "ดูมาก", [("replace", "ดี", "ดู")]),
        ("ကောပါ", "ကေပါ", [("replace", "ကော", "ကေ")]),
        ("한국어 좋아", "한국말 좋아", [("replace", "한국어", "한국말")]),
        # line ends and tabs
        ("one\r\ntwo", "one\ntwo", [("delete", "\r", "")]),
        ("one\tthe fox", "one the fox", [("replace", "\tthe", " the")]),
        ("one\n\ntwo\n", "one\n\nnew\n", [("replace", "two", "new")]),
    ],
)
def test_unicode_and_white_space(original, edited, edits):
    assert edits_of(original, edited, align_edits(original, edited, tokenizer("bpe"))) == edits


@pytest.mark.parametrize("kind", ["metaspace", "wordpiece", "unigram", "trimmed", "unsplit"])
@pytest.mark.parametrize(
    ("original", "edited", "edits"),
    [
        ("the 👍🏽 fox", "the 👍 fox", [("replace", "👍🏽", "👍")]),
        ("the x\u0302 fox", "the x fox", [("replace", "x\u0302", "x")]),
        ("the עולם fox", "the ילד fox", [("replace", "עולם", "ילד")]),
        ("the 狗 fox", "the 猫 fox", [("replace", "狗", "猫")]),
    ],
)
def test_unicode_is_edited_alike_by_every_tokenizer(kind, original, edited, edits):
    # All of these are unknown to some of the tokenizers: what was edited is told by the text, not by `<unk>`. But two
    # `<unk>` are one token, which cannot be both right and wrong.
    alignment = align_edits(original, edited, tokenizer(kind))
    assert [(kind, one.strip(), other.strip()) for kind, one, other in edits_of(original, edited, alignment)] == edits
    differ = alignment.original_ids != alignment.edited_ids
    assert any(alignment.original_mask) == any(alignment.edited_mask) == differ


@pytest.mark.parametrize(
    ("original", "edited", "edits"),
    [
        # whole sentences, not the tail of one and the head of the next
        ("We are. We eat. We go.", "We are. We go.", [("delete", " We eat.", "")]),
        ("We are. You go.", "We are. We were. You go.", [("insert", "", " We were.")]),
        ("吃飯。吃菜。走。", "吃飯。走。", [("delete", "吃菜。", "")]),
        # whole lines
        ("- a\n- b\n- c", "- a\n- c", [("delete", "\n- b", "")]),
        ("- a\n- c\n", "- a\n- c\n- d\n", [("insert", "", "\n- d")]),
        ("a. b\nc. b", "a. b", [("delete", "\nc. b", "")]),
        # otherwise the latest place
        ("it was very very very good", "it was very good", [("delete", " very very", "")]),
        ("no no", "no", [("delete", " no", "")]),
        ("a b a b a b", "a b", [("delete", " a b a b", "")]),
        ("the x x y", "the x z y", [("replace", "x", "z")]),
        # where the white space agrees it can stay
        ("so:\nfoo foo bar", "so: foo bar", [("delete", "\nfoo", "")]),
    ],
)
def test_where_an_ambiguous_edit_is_put(original, edited, edits):
    for kind in ("bpe", "trimmed"):
        assert edits_of(original, edited, align_edits(original, edited, tokenizer(kind))) == edits
    swapped = [({"insert": "delete", "delete": "insert"}.get(kind, kind), new, old) for kind, old, new in edits]
    assert edits_of(edited, original, align_edits(edited, original, tokenizer("bpe"))) == swapped


def test_second_of_two_equal_words_is_the_duplicate():
    alignment = align_edits("I would would watch it", "I would watch it", whole_words("bpe"))
    assert alignment.original_mask == [False, False, True, False, False]


def test_special_tokens_given_with_the_text_are_not_counted():
    original, edited = "the fox", "the lousy fox jumps"
    cls, sep = 900, 901
    plain = align_edits(original, edited, whole_words("wordpiece"))

    def with_special_tokens(text: str) -> TokenizedText:
        tokens = whole_words("wordpiece")(text, add_special_tokens=False, return_offsets_mapping=True)
        return TokenizedText([cls, *tokens.input_ids, sep], [(0, 0), *tokens.offset_mapping, (0, 0)])

    alignment = align_tokenized(original, edited, with_special_tokens(original), with_special_tokens(edited))
    assert alignment.original_mask == [False, *plain.original_mask, False] == [False] * 4
    assert alignment.edited_mask == [False, *plain.edited_mask, False] == [False, False, True, False, True, False]
    assert alignment.original_anchors == [False, False, True, False]
    assert alignment.edit_ratio == plain.edit_ratio == 2 / 6
    assert [(op.original_tokens, op.edited_tokens) for op in alignment.operations] == [
        ((2, 2), (2, 3)),
        ((3, 3), (4, 5)),
    ]


def test_trimmed_offsets_lose_no_token():
    # "Ġ" has the empty span (0, 0) at the start of a text, (k, k) elsewhere; each is a token of text all the same.
    spaced = align_edits("  the fox", "the fox", tokenizer("trimmed"))
    assert tokens_where(tokenizer("trimmed"), spaced.original_ids, spaced.original_mask) == ["Ġ", "Ġthe"]
    inside = align_edits("the  fox  ", "the fox", tokenizer("trimmed"))
    assert tokens_where(tokenizer("trimmed"), inside.original_ids, inside.original_mask) == ["Ġ", "Ġ", "Ġ"]


def test_token_across_words_is_edited_as_a_whole():
    # "fox jumps" is one token: without "jumps" it cannot stay, though "fox" does.
    alignment = align_tokenized(
        "the fox jumps", "the fox", TokenizedText([1, 2], [(0, 3), (3, 13)]), TokenizedText([1, 3], [(0, 3), (3, 7)])
    )
    assert (alignment.original_mask, alignment.edited_mask) == ([False, True], [False, True])


def test_word_is_edited_as_a_whole_where_its_first_token_differs():
    # "Ġfo x" against "fo x": the last token is the same in both, but the word is one.
    alignment = align_tokenized(
        "a fox",
        "a-fox",
        TokenizedText([1, 2, 3], [(0, 1), (1, 4), (4, 5)]),
        TokenizedText([1, 4, 5, 3], [(0, 1), (1, 2), (2, 4), (4, 5)]),
    )
    assert (alignment.original_mask, alignment.edited_mask) == ([False, True, True], [False, True, True, True])


tokens_in_any_order = st.lists(st.tuples(st.integers(5, 7), st.integers(0, 7), st.integers(1, 4)), max_size=8).map(
    lambda tokens: TokenizedText([i for i, _, _ in tokens], [(start, min(start + n, 8)) for _, start, n in tokens])
)


@given(original_tokens=tokens_in_any_order, edited_tokens=tokens_in_any_order)
def test_offsets_may_overlap_and_need_not_rise(original_tokens, edited_tokens):
    # Normalizers open up ligatures and reorder combining marks.
    original, edited = "a b c. d", "a c b. d"
    alignment = align_tokenized(original, edited, original_tokens, edited_tokens)
    check(alignment)
    assert mirror(align_tokenized(edited, original, edited_tokens, original_tokens)) == alignment


def test_token_out_of_order_is_edited_with_its_text():
    # Token 8 comes last and stands for the first word, which changed; "b" cannot be kept without it.
    offsets = [(2, 3), (0, 1)]
    alignment = align_tokenized("a b", "x b", TokenizedText([7, 8], offsets), TokenizedText([7, 9], offsets))
    assert (alignment.original_mask, alignment.edited_mask) == ([True, True], [True, True])


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["the", "fox", "would", "it"]), max_size=15),
    st.lists(st.sampled_from(["the", "fox", "would", "it"]), max_size=15),
)
def test_words_kept_are_maximal(original, edited):
    # With every word one token, the fewest tokens that an alignment of words can mask are those of a longest common
    # subsequence. "a" in front keeps the spaces alike.
    original, edited = ["a", *original], ["a", *edited]
    alignment = align_edits(" ".join(original), " ".join(edited), whole_words("bpe"))
    assert len(alignment.original_ids) == len(original) and len(alignment.edited_ids) == len(edited)
    assert sum(alignment.original_mask) + sum(alignment.edited_mask) == Indel.distance(original, edited)


def test_result_does_not_depend_on_the_process_and_the_import_is_light():
    script = (
        "import sys\n"
        "from trl_tokenreward.edits.alignment import align_ids, align_tokenized, TokenizedText\n"
        "texts = 'a b a c b a b. a b', 'b a c a b b. b a b a'\n"
        "tokens = [TokenizedText([ord(c) for c in t], [(i, i + 1) for i in range(len(t))]) for t in texts]\n"
        "print(align_tokenized(*texts, *tokens), align_ids(*(t.ids for t in tokens)))\n"
        "assert not {'torch', 'transformers', 'trl', 'numpy'} & set(sys.modules), 'edits need lists alone'\n"
    )
    root = Path(__file__).resolve().parents[2]
    runs = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        for seed in ("0", "1")
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and "EditAlignment" in runs[0].stdout


def random_edit(words: int, seed: int, vocabulary: int = 3000) -> tuple[str, str]:
    """A text of so many words, and an edit of every tenth of them."""
    rng = Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(vocabulary)]
    original = rng.choices(vocabulary, k=words)
    edited = []
    for word in original:
        edit = rng.choice(["delete", "insert", "replace"]) if rng.random() < 0.1 else "keep"
        edited += {"delete": [], "insert": [word, rng.choice(vocabulary)], "replace": [rng.choice(vocabulary)]}.get(
            edit, [word]
        )
    return " ".join(original), " ".join(edited)


def seconds(original: str, edited: str) -> float:
    """Processor time, so that what else runs on the machine does not count; the best of three, for the same reason."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        align_edits(original, edited, tokenizer("bpe"))
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(("vocabulary", "most"), [(3000, 20), (2, 64)], ids=["words", "two words alone"])
@pytest.mark.slow
def test_time_grows_with_the_length(vocabulary, most):
    # Stated bounds: 8,000 words edited in every tenth place within 10 s (about 0.2 s on an ordinary core); 8 times the
    # words in about 8 times the time (with room for processor caches: tokens of 8,000 words do not fit), in at most 64
    # times where texts of two different words leave nothing to tell one place from another.
    took = {words: seconds(*random_edit(words, seed=0, vocabulary=vocabulary)) for words in (1000, 8000)}
    assert took[8000] < 10
    assert took[8000] <= most * took[1000]


@pytest.mark.parametrize(
    ("original", "edited"),
    [
        ("very " * 8000, "very " * 4000),
        ("very " * 8000, ""),
        ("a b " * 4000, "b a " * 4000),
        ("x" * 40000, "y" * 40000),
    ],
    ids=["half of one word", "all", "shifted", "one long word"],
)
def test_time_on_repetitive_text(original, edited):
    assert seconds(original, edited) < 10


def test_real_edits_cut_no_word():
    with shared_file("paradetox-8000.tsv").open(encoding="utf-8") as lines:
        next(lines)
        rows = (line.rstrip("\n").split("\t") for line in lines)
        pairs = [(row[0], row[1]) for row in rows if len(row) > 1 and row[1]][:1000]
    assert len(pairs) == 1000
    byte_level = tiny.tokenizer("bpe", vocab_size=2000, corpus=[original for original, _ in pairs])
    word_cuts, token_cuts, word_masked, token_masked = 0, 0, 0, 0
    for pair in pairs:
        by_words = align_edits(*pair, byte_level)
        by_tokens = align_ids(by_words.original_ids, by_words.edited_ids)
        check(by_words)
        for text, side in zip(pair, ("original", "edited"), strict=True):
            offsets = byte_level(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
            word_cuts += len(cut_words(text, offsets, getattr(by_words, f"{side}_mask")))
            token_cuts += len(cut_words(text, offsets, getattr(by_tokens, f"{side}_mask")))
            word_masked += sum(getattr(by_words, f"{side}_mask"))
            token_masked += sum(getattr(by_tokens, f"{side}_mask"))
    assert word_cuts == 0
    assert token_cuts > 100  # the measure is not blind: aligning the tokens cuts words on the same pairs
    assert token_masked <= word_masked <= 1.25 * token_masked


def normalizing(normalizer):
    backend = copy.deepcopy(tokenizer("bpe").backend_tokenizer)
    backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.mark.parametrize(
    ("normalizer", "original", "edited"),
    [
        (normalizers.NFC(), "the café was fine", "the cafe\u0301 was fine"),
        (normalizers.NFKC(), "ABC １２３ fine", "ＡＢＣ 123 fine"),
        (normalizers.NFKC(), "so… ﬁne", "so... fine"),  # one word and three
        (normalizers.Lowercase(), "the Café", "The café"),
    ],
)
def test_an_edit_that_the_tokenizer_does_not_see_masks_nothing(normalizer, original, edited):
    alignment = align_edits(original, edited, normalizing(normalizer))
    assert alignment.original_ids == alignment.edited_ids
    assert not any((*alignment.original_mask, *alignment.edited_mask))
    assert not any((*alignment.original_anchors, *alignment.edited_anchors))
    assert alignment.edit_ratio == 0 and alignment.operations  # its characters did change
    assert all(op.original_tokens[0] == op.original_tokens[1] for op in alignment.operations)


def test_a_word_that_the_tokenizer_does_not_see_changed_beside_one_that_did():
    lower = normalizing(normalizers.Lowercase())
    original, edited = "The quick Fox was lousy.", "the lazy fox was lousy."
    for texts in ((original, edited), (edited, original)):
        alignment = align_edits(*texts, lower)
        pairs = ((alignment.original_ids, alignment.original_mask), (alignment.edited_ids, alignment.edited_mask))
        masked = [lower.decode([i for i, edit in zip(*pair, strict=True) if edit]).strip() for pair in pairs]
        assert sorted(masked) == ["lazy", "quick"]
    assert edits_of(original, edited, align_edits(original, edited, lower)) == [
        ("replace", "The", "the"),
        ("replace", "quick", "lazy"),
        ("replace", "Fox", "fox"),
    ]


def test_unknown_words_are_one_token():
    alignment = align_edits("a 狗 b c", "a 猫 b d", word_tokenizer())
    assert alignment.original_mask == alignment.edited_mask == [False, False, False, True]


def test_half_a_character_is_no_text():
    for texts, name in ((("", "\ud800"), "edited"), (("a \udc00 b", "a"), "original")):
        for align in (align_edits, align_words):
            with pytest.raises(ValueError, match=f"`{name}` has half of a character"):
                align(*texts, *([tokenizer("bpe")] if align is align_edits else []))
