"""An edit as pieces in reading order, for views."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from .alignment import EditAlignment


class Piece(NamedTuple):
    """A stretch of a diff. The pieces without the insertions are the original, without the deletions the edit.

    Args:
        kind (`"keep"`, `"delete"` or `"insert"`):
            What the edit did with it.
        text (`str`):
            Its characters.
        marked (`bool`, *optional*, defaults to `False`):
            `True` if it lies within one of the row's `rejected_spans`.
    """

    kind: Literal["keep", "delete", "insert"]
    text: str
    marked: bool = False


def diff_pieces(
    original: str, edited: str, alignment: EditAlignment, spans: Sequence[Sequence[int]] = ()
) -> list[Piece]:
    """An edit as pieces in reading order, of a replacement the old text before the new.

    Args:
        original, edited (`str`):
            Texts before and after the edit.
        alignment ([`EditAlignment`]):
            Of these texts.
        spans (`Sequence[Sequence[int]]`, *optional*):
            `[start, end)` characters of the original that are marked.
    """
    pieces, reached = [], 0

    def add(kind: Literal["keep", "delete"], start: int, end: int) -> None:
        borders = {place for span in spans for place in span if start < place < end}
        for first, last in pairwise(sorted({start, end, *borders})):
            marked = any(begin <= first and last <= stop for begin, stop in spans)
            pieces.append(Piece(kind, original[first:last], marked))

    for operation in alignment.operations:
        start, end = operation.original_chars
        add("keep", reached, start)
        add("delete", start, end)
        if inserted := edited[slice(*operation.edited_chars)]:
            pieces.append(Piece("insert", inserted))
        reached = end
    add("keep", reached, len(original))
    return pieces
