"""Minimal edits between two texts, as masks over the tokens of each.

Words are aligned first, so that no word is cut in half, and as many words as possible are kept. The kept words are then
projected to tokens through the tokenizer's character offsets: a stretch of text stays unmasked where both sides hold
the same tokens. That goes for different text too, if the tokenizer makes the same tokens of it.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import regex
from rapidfuzz.distance import Indel

from ..utils.text import unicode_problem


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Block = list[int]  # a kept stretch: position in the original, position in the edit, length


class TokenizedText(NamedTuple):
    """A text's tokens: `ids`, and for each the `(start, end)` characters that it stands for, counted from the start of
    the text that goes with it."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def blank_start(text: str, end: int) -> int:
    """Where a token with the empty span `(end, end)` begins. Byte-level tokenizers that trim their offsets give such a
    span to a token of white space, right after it; any other token has no characters."""
    return end - 1 if text[max(end - 1, 0) : end].isspace() else end


@dataclass(frozen=True)
class EditOperation:
    """One contiguous edit. All ranges are half-open.

    Args:
        kind (`"insert"`, `"delete"` or `"replace"`):
            What happened to the tokens; where no token changed (white space under a tokenizer that drops it, two
            spellings of a word that the tokenizer normalizes to one), what happened to the characters.
        original_chars, edited_chars (`tuple[int, int]`):
            The characters that the edit replaced and those that it put there. `(0, 0)` from [`align_ids`].
        original_tokens, edited_tokens (`tuple[int, int]`):
            The same for tokens, as positions in the alignment's ids. Both are empty where no token changed.
    """

    kind: Literal["insert", "delete", "replace"]
    original_chars: tuple[int, int]
    edited_chars: tuple[int, int]
    original_tokens: tuple[int, int]
    edited_tokens: tuple[int, int]


@dataclass(frozen=True)
class EditAlignment:
    """Which tokens of two texts were edited. Without their masked tokens the two sides are equal.

    Args:
        original_ids, edited_ids (`list[int]`):
            The tokens of each side.
        original_mask, edited_mask (`list[bool]`):
            `original_mask[i]` says that token `i` was edited out, `edited_mask[j]` that token `j` was edited in.
        original_anchors, edited_anchors (`list[bool]`):
            A deletion leaves no token on the edited side to hold it, an insertion none on the original's. The anchor is
            the token right after the gap on that side, or the side's last token where the gap is at its end. An anchor
            is never masked; a side without tokens has none.
        operations (`list[EditOperation]`):
            The edits in order. Their token ranges cover exactly the masked tokens.
        edit_ratio (`float`):
            Masked tokens of both sides, divided by the tokens of both sides; 0 where there are none.
    """

    original_ids: list[int]
    edited_ids: list[int]
    original_mask: list[bool]
    edited_mask: list[bool]
    original_anchors: list[bool]
    edited_anchors: list[bool]
    operations: list[EditOperation]
    edit_ratio: float


def align_edits(original: str, edited: str, tokenizer: "PreTrainedTokenizerFast") -> EditAlignment:
    """Finds the tokens that an edit took out of `original` and those that it put into `edited`.

    The result depends on the arguments alone. Swapping the texts swaps the two sides of the result. Between the first
    and the last edit, time grows with the product of the numbers of words, and memory is one bit for each pair of words
    (8 MB for two texts of 8,000 words). Up to 8,192 words, other steps, which grow with the length, take most of the
    time.

    Args:
        original (`str`):
            Text before the edit.
        edited (`str`):
            Text after it.
        tokenizer (`PreTrainedTokenizerFast`):
            Any tokenizer that gives character offsets. Special tokens are not added.

    Returns:
        [`EditAlignment`]: masks over the tokens of each text.

    Raises:
        TypeError: If a text is not a `str`.
        ValueError: If a text is not Unicode text, or the tokenizer gives no character offsets.
    """
    _check_texts(original, edited)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, and edits are projected to tokens through them: "
            "load a fast tokenizer (AutoTokenizer gives one wherever the checkpoint has a `tokenizer.json`), or align "
            "token ids with `align_ids`."
        )
    return align_tokenized(original, edited, _tokenize(original, tokenizer), _tokenize(edited, tokenizer))


def align_tokenized(
    original: str, edited: str, original_tokens: TokenizedText, edited_tokens: TokenizedText
) -> EditAlignment:
    """[`align_edits`] for texts that are tokenized already.

    A token with an empty span stands for no text (special tokens have the span `(0, 0)`): it is never masked, is no
    anchor and does not count in the edit ratio. The exception is an empty span right after white space, as byte-level
    tokenizers that trim their offsets give it to a token of white space: that token stands for the character before.

    Args:
        original, edited (`str`):
            Texts before and after the edit.
        original_tokens, edited_tokens ([`TokenizedText`]):
            Their tokens, with character offsets into these very texts.

    Returns:
        [`EditAlignment`]: masks over the given tokens.

    Raises:
        TypeError: If a text is not a `str`.
        ValueError: If a text is not Unicode text, there are not as many offsets as ids, or an offset lies outside its
            text.
    """
    _check_texts(original, edited)
    original_side = _side(original, original_tokens, "original_tokens")
    edited_side = _side(edited, edited_tokens, "edited_tokens")
    kept = _kept(original, edited, original_side, edited_side)
    end = _Point(len(original), len(edited), len(original_side.ids), len(edited_side.ids))
    return _alignment(original_tokens.ids, edited_tokens.ids, original_side.places, edited_side.places, kept, end)


def align_words(original: str, edited: str) -> EditAlignment:
    """[`align_edits`] without a tokenizer: a word, a punctuation mark, or a character of a script without spaces is a
    token.

    White space belongs to no token. Where nothing else is edited, no token is masked.

    Args:
        original, edited (`str`):
            Texts before and after the edit.

    Returns:
        [`EditAlignment`]: masks over words. The ids number the words in the order in which they first appear.

    Raises:
        TypeError: If a text is not a `str`.
        ValueError: If a text is not Unicode text.
    """
    _check_texts(original, edited)
    numbers: dict[str, int] = {}
    return align_tokenized(original, edited, _words(original, numbers), _words(edited, numbers))


def word_edit_ratio(
    original: str,
    edited: str,
    original_spans: Sequence[Sequence[int]] | None = None,
    edited_spans: Sequence[Sequence[int]] | None = None,
) -> float:
    """The share of edited words among the words of both texts, with punctuation marks counted as words (see
    [`align_words`]). Every `max_edit_ratio` of this package bounds this share.

    Args:
        original, edited (`str`):
            Texts before and after the edit, without the prompt, EOS and chat template.
        original_spans, edited_spans (`Sequence[Sequence[int]]`, *optional*):
            `[start, end)` characters that a row marks as edited. On a side that has them, the words that overlap them
            are the edited ones. `None` takes the alignment's.

    Returns:
        `float`: from 0 to 1; 0 if there are no words.
    """
    alignment = align_words(original, edited)
    if original_spans is None and edited_spans is None:
        return alignment.edit_ratio
    edited_words = 0
    sides = ((original, alignment.original_mask, original_spans), (edited, alignment.edited_mask, edited_spans))
    for text, mask, spans in sides:
        if spans is not None:
            offsets = _words(text, {}).offsets
            mask = [any(first < end and start < last for start, end in spans) for first, last in offsets]
        edited_words += sum(mask)
    words = len(alignment.original_ids) + len(alignment.edited_ids)
    return edited_words / words if words else 0.0


def _words(text: str, numbers: dict[str, int]) -> TokenizedText:
    """The words of a text as tokens. `numbers` holds the id of each word and gets those of new words."""
    units = _units(text)
    found = list(zip(map(str, units.cores), units.starts, strict=True))[:-1]  # the last is the text's end
    ids = [numbers.setdefault(core, len(numbers)) for core, _ in found]
    return TokenizedText(ids, [(start, start + len(core)) for core, start in found])


def align_ids(original_ids: Sequence[int], edited_ids: Sequence[int]) -> EditAlignment:
    """[`align_edits`] for bare token ids: the longest common subsequence of tokens is kept.

    Without the text there are no words to respect, so prefer [`align_edits`] where the text is at hand. Time and memory
    are those of [`align_edits`], with tokens for words. Of the places where an insertion or a deletion could as well
    be, it is put at the last.

    Args:
        original_ids, edited_ids (`Sequence[int]`):
            Tokens before and after the edit.

    Returns:
        [`EditAlignment`]: masks over the given tokens. Its operations have the character spans `(0, 0)`.

    Raises:
        TypeError: If an id is not an integer.
    """
    original_ids, edited_ids = _check_ids(original_ids, "original_ids"), _check_ids(edited_ids, "edited_ids")
    blocks = _match(*(_Units(ids, [""] * len(ids), [], []) for ids in (original_ids, edited_ids)))
    kept = [(_Point(0, 0, i, j), _Point(0, 0, i + length, j + length), True) for i, j, length in blocks]
    sizes = len(original_ids), len(edited_ids)
    return _alignment(original_ids, edited_ids, range(sizes[0] + 1), range(sizes[1] + 1), kept, _Point(0, 0, *sizes))


def _check_texts(original: str, edited: str) -> None:
    for name, text in (("original", original), ("edited", edited)):
        if not isinstance(text, str):
            raise TypeError(f"`{name}` must be a str, but is a {type(text).__name__}.")
        if problem := unicode_problem(text):
            raise ValueError(f"`{name}` {problem}")


def _check_ids(ids: Sequence[int], name: str) -> list[int]:
    try:
        return [operator.index(i) for i in ids]
    except TypeError as error:
        raise TypeError(f"`{name}` must be a sequence of integers: {error}.") from error


# In scripts that are written without spaces (Thai and its neighbours are Unicode's "complex context") only a dictionary
# finds the words, so there every character stands alone, as punctuation and emoji do. Marks stay with their base, and
# joiners keep a Persian or Indic word in one piece.
_UNSPACED = r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Line_Break=Complex_Context}"
_LETTER = rf"[\p{{M}}[[\p{{L}}\p{{N}}\p{{Join_Control}}_]--[{_UNSPACED}]]]"
_UNIT = regex.compile(rf"(?V1)(\s*+)({_LETTER}++(?:['’]{_LETTER}++)*+|\X\p{{M}}*+)")
# Of any script. An ellipsis is no sentence terminal to Unicode, but ends a sentence as often as not.
SENTENCE_END = r"[\p{Sentence_Terminal}…]"
_SENTENCE_END = regex.compile(SENTENCE_END)


class _Units(NamedTuple):
    """What is aligned: words (or what `_UNIT` takes for one), or bare ids. Two units match if their `cores` do. A word
    stands from its entry of `starts` to that of `ends`, right after its white space in `spaces`."""

    cores: list[str] | list[int]
    spaces: list[str]
    starts: list[int]
    ends: list[int]


def _units(text: str) -> _Units:
    """The units of a text. The last has an empty core: it stands at the text's end, after whatever white space is
    there."""
    # "", space, core, "", space, core, ..., and what is left: the units follow on each other from the text's start.
    parts = _UNIT.split(text)
    places = [*accumulate(map(len, parts))]
    return _Units([*parts[2::3], ""], [*parts[1::3], parts[-1]], [*places[1::3], len(text)], [*places[2::3], len(text)])


def _match(original: _Units, edited: _Units) -> list[Block]:
    """The stretches of units with equal cores that the edit kept, a longest common subsequence: position in the
    original, position in the edit, length."""
    # Several subsequences may be longest. One order of the two sides makes the choice independent of which is which.
    if (len(original.cores), original.cores) > (len(edited.cores), edited.cores):
        return [[i, j, length] for j, i, length in _match(edited, original)]
    numbers: dict[str | int, int] = {}  # rapidfuzz compares hashes alone, and no two small integers share one
    sides = ([numbers.setdefault(core, len(numbers)) for core in side.cores] for side in (original, edited))
    blocks = [[0, 0, 0], *_common_blocks(*sides), [len(original.cores), len(edited.cores), 0]]
    _slide(blocks, original, edited)
    return blocks


def _common_blocks(original: Sequence[int], edited: Sequence[int]) -> list[Block]:
    """The stretches that a longest common subsequence keeps, as rapidfuzz finds it."""
    opcodes = Indel.opcodes(original, edited)
    return [[op.src_start, op.dest_start, op.src_end - op.src_start] for op in opcodes if op.tag == "equal"]


def _slide(blocks: list[Block], original: _Units, edited: _Units) -> None:
    """Moves each insertion or deletion that could as well lie elsewhere to the best of its places, by changing the kept
    `blocks` on its two sides."""
    for block, following in pairwise(blocks):
        i, j, before = block
        i_next, j_next, after = following
        if j + before == j_next:
            shift = _best_shift(original, i + before, i_next, edited, j_next, before, after)
        elif i + before == i_next:
            shift = _best_shift(edited, j + before, j_next, original, i_next, before, after)
        else:
            continue
        block[:] = i, j, before + shift
        following[:] = i_next + shift, j_next + shift, after - shift


def _best_shift(units: _Units, start: int, end: int, other: _Units, place: int, before: int, after: int) -> int:
    """How far to move the edit of `units` from `start` to `end`, which lies at `place` of `other` between `before` and
    `after` kept units: to where most white space agrees, there to where it is made of whole sentences, there as late as
    can be (of two equal words in a row, the second is one too many)."""
    cores, spaces = units.cores, units.spaces
    if start == end:
        return 0
    back = forward = 0
    while back < before and cores[start - back - 1] == cores[end - back - 1]:
        back += 1
    while forward < after and cores[start + forward] == cores[end + forward]:
        forward += 1

    def is_break(position: int) -> bool:
        if position in (0, len(cores)) or cores[position] == "":
            return True
        return bool(_SENTENCE_END.fullmatch(str(cores[position - 1]))) or "\n" in spaces[position]

    best, agreeing = (0, False, -back), 0
    for shift in range(-back, forward + 1):
        best = max(best, (agreeing, is_break(start + shift) and is_break(end + shift), shift))
        # One step on, it is `start + shift` that is kept opposite `place + shift`, and no longer `end + shift`.
        if shift < forward:
            space = other.spaces[place + shift]
            agreeing += (spaces[start + shift] == space) - (spaces[end + shift] == space)
    return best[2]


class _Point(NamedTuple):
    """A place between two characters, and between two tokens, on both sides."""

    original_char: int
    edited_char: int
    original_token: int
    edited_token: int


_Kept = tuple[_Point, _Point, bool]  # the start and the end of a kept stretch, and whether its characters are the same


def _kept(original: str, edited: str, original_side: "_Side", edited_side: "_Side") -> list[_Kept]:
    """The stretches of text that are the same tokens on both sides."""
    kept: list[list[Any]] = []
    ids, cuts = original_side.ids, original_side.cuts
    edited_ids, edited_cuts = edited_side.ids, edited_side.cuts
    o, e, start, same = -1, -1, None, True
    units, edited_units = _with_one_core((_units(original), original_side), (_units(edited), edited_side))
    # Tokens are compared in the smallest stretches that cut neither a word nor a token on either side.
    for i, i_end, j, j_end in _pieces(original, edited, units, edited_units):
        if i != o or j != e:
            token, edited_token = cuts[i], edited_cuts[j]
            start, same = None if token is None or edited_token is None else (i, j, token, edited_token), True
        o, e = i_end, j_end
        same = same and original[i:o] == edited[j:e]
        token, edited_token = cuts[o], edited_cuts[e]
        if token is None or edited_token is None:
            continue
        point = o, e, token, edited_token
        if start is not None and ids[start[2] : token] == edited_ids[start[3] : edited_token]:
            if same and kept and kept[-1][1] is start and kept[-1][2]:
                kept[-1][1] = point
            else:
                kept.append([start, point, same])
        start, same = point, True
    return [(_Point(*begin), _Point(*end), same) for begin, end, same in kept]


def _with_one_core(*sides: tuple[_Units, "_Side"]) -> list[_Units]:
    """The units of both sides, where words that are the same tokens have one core: under normalization (NFC and NFD,
    lower case) or without a token of their own they differ in their characters alone."""
    names: dict[str, str] = {}  # the next core, on the way to the least of those that are alike
    first_with: dict[tuple[int, ...], str] = {}

    def name(core: str) -> str:
        while core in names:
            core = names[core]
        return core

    for units, side in sides:
        for core, start in zip(map(str, units.cores), units.starts, strict=True):
            token, last = side.cuts[start], side.cuts[start + len(core)]
            if token is None or last is None or token == last:
                continue
            one, other = name(core), name(first_with.setdefault(tuple(side.ids[token:last]), core))
            if one != other:
                names[max(one, other)] = min(one, other)
    if not names:
        return [units for units, _ in sides]
    return [units._replace(cores=[name(str(core)) for core in units.cores]) for units, _ in sides]


def _pieces(
    original: str, edited: str, original_units: _Units, edited_units: _Units
) -> Iterator[tuple[int, int, int, int]]:
    """The white space and the words that the edit kept: where each starts and ends in the original, and in the
    edit."""
    end, edited_end = 0, 0
    for i, j, length in _match(original_units, edited_units):
        columns = [column[i : i + length] for column in original_units[1:]]
        edited_columns = [column[j : j + length] for column in edited_units[1:]]
        for space, start, next_end, edited_space, edited_start, next_edited_end in zip(
            *columns, *edited_columns, strict=True
        ):
            same = len(space) if space == edited_space else len(commonprefix([space[::-1], edited_space[::-1]]))
            space_start, edited_space_start = start - same, edited_start - same
            if end < space_start and edited_end < edited_space_start:
                # Between the last kept word and this space lies the edit; if both sides of it begin with a space, that
                # is kept.
                edit = commonprefix([original[end:space_start], edited[edited_end:edited_space_start]])
                blank = len(edit) - len(edit.lstrip())
                yield end, end + blank, edited_end, edited_end + blank
            if same:
                yield space_start, start, edited_space_start, edited_start
            end, edited_end = next_end, next_edited_end
            yield start, end, edited_start, edited_end


class _Side(NamedTuple):
    """The tokens of one side that stand for text. `places` are their positions among all tokens, and the end's; `cuts`
    holds for each position in the text the number of tokens before it, or `None` inside a token."""

    ids: list[int]
    places: Sequence[int]
    cuts: list[int | None]


def _tokenize(text: str, tokenizer: "PreTrainedTokenizerFast") -> TokenizedText:
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # There are no special tokens here: what has the span (0, 0) is white space that a byte-level tokenizer trimmed.
    first = 0, min(1, len(text))
    return TokenizedText(tokens["input_ids"], [span if any(span) else first for span in tokens["offset_mapping"]])


def _side(text: str, tokens: TokenizedText, name: str) -> _Side:
    ids, offsets = tokens
    if len(ids) != len(offsets):
        raise ValueError(f"`{name}` has {len(ids)} ids but {len(offsets)} offsets: each id needs its (start, end).")
    places: list[int] = []
    reached = 0
    cuts: list[int | None] = [None] * (len(text) + 1)
    for place, (start, end) in enumerate(offsets):
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"`{name}` has the offsets {(start, end)} at token {place}, outside its text of {len(text)} "
                "characters: offsets are counted from the start of the text that is aligned."
            )
        if start == end:
            start = blank_start(text, end)
            if start == end:
                continue
        # Tokenizers disagree on whether the space that a token stands for is in its span, and at the start of a text
        # the space may not even be there ("▁This"). The id says which it is, so the span need not.
        token = text[start:end]
        word = token.strip()
        if word and len(word) < len(token):
            start, end = end - len(token.lstrip()), start + len(token.rstrip())
        if start < reached:  # for example several tokens for one character
            cuts[start + 1 : reached] = [None] * (reached - start - 1)
        for position in range(reached, start + 1):
            cuts[position] = len(places)
        places.append(place)
        reached = max(reached, end)
    for position in range(reached, len(text) + 1):
        cuts[position] = len(places)
    return _Side([ids[place] for place in places], [*places, places[-1] + 1 if places else 0], cuts)


def _alignment(
    original_ids: list[int],
    edited_ids: list[int],
    original_places: Sequence[int],
    edited_places: Sequence[int],
    kept: list[_Kept],
    end: _Point,
) -> EditAlignment:
    """Builds the masks, anchors and operations: whatever is not kept is an edit. An edit that leaves the same tokens,
    or whose text was kept for its tokens, masks none."""
    gaps: list[tuple[_Point, _Point]] = []
    previous, joins = _Point(0, 0, 0, 0), False
    for start, stop, same in [*kept, (end, end, True)]:
        if start != previous:
            # Edits with no token between them are one.
            joined = gaps.pop()[0] if joins and gaps[-1][1][2:] == previous[2:] else previous
            gaps.append((joined, start))
            joins = True
        if not same:
            gaps.append((start, stop))
            joins = False
        previous = stop

    original_mask, edited_mask = [False] * len(original_ids), [False] * len(edited_ids)
    original_anchors, edited_anchors = [False] * len(original_ids), [False] * len(edited_ids)
    operations = []
    for start, stop in gaps:
        original_tokens = range(start.original_token, stop.original_token)
        edited_tokens = range(start.edited_token, stop.edited_token)
        if [original_ids[original_places[i]] for i in original_tokens] == [
            edited_ids[edited_places[j]] for j in edited_tokens
        ]:
            original_tokens, edited_tokens = original_tokens[:0], edited_tokens[:0]
        for i in original_tokens:
            original_mask[original_places[i]] = True
        for j in edited_tokens:
            edited_mask[edited_places[j]] = True
        if edited_tokens and not original_tokens and end.original_token:
            original_anchors[original_places[min(start.original_token, end.original_token - 1)]] = True
        if original_tokens and not edited_tokens and end.edited_token:
            edited_anchors[edited_places[min(start.edited_token, end.edited_token - 1)]] = True
        original_chars = start.original_char, stop.original_char
        edited_chars = start.edited_char, stop.edited_char
        changed = (original_tokens, edited_tokens)
        if not any(changed):
            changed = (range(*original_chars), range(*edited_chars))
        operations.append(
            EditOperation(
                kind="replace" if all(changed) else "delete" if changed[0] else "insert",
                original_chars=original_chars,
                edited_chars=edited_chars,
                original_tokens=_place_range(original_tokens, original_places),
                edited_tokens=_place_range(edited_tokens, edited_places),
            )
        )
    masked, tokens = sum(original_mask) + sum(edited_mask), end.original_token + end.edited_token
    return EditAlignment(
        original_ids=list(original_ids),
        edited_ids=list(edited_ids),
        original_mask=original_mask,
        edited_mask=edited_mask,
        original_anchors=original_anchors,
        edited_anchors=edited_anchors,
        operations=operations,
        edit_ratio=masked / tokens if tokens else 0.0,
    )


def _place_range(tokens: range, places: Sequence[int]) -> tuple[int, int]:
    first = places[tokens.start]
    return first, places[tokens.stop - 1] + 1 if tokens else first
