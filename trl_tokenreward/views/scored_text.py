"""Texts with one or more numbers for every token."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class Shown(NamedTuple):
    """The tokens that are shown as one piece: a character may be made of several.

    Args:
        text (`str`):
            Their text.
        start, stop (`int`):
            The tokens, `tokens[start:stop]`.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class ScoredText:
    """A text of L tokens, with one or more numbers for each.

    Args:
        tokens (`Sequence[str]`):
            What each token adds to the text: joined, they are the text. A token that only completes the character of
            the token before it has `""`.
        series (`Mapping[str, Sequence[float | None]]`):
            Name to L numbers, `None` where there is none. The first series is the one that is coloured.
        name (`str`, *optional*):
            What tells the text from the others of its row: a side, or a model.
        numbers (`Mapping[str, float]`, *optional*):
            Numbers of the whole text, by name.
        edited (`Sequence[bool]`, *optional*):
            L: `True` for the tokens that the edit deleted or inserted.
        edit (`"delete"` or `"insert"`, *optional*):
            Which of the two it did. `None`: the text is no side of an edit.

    Raises:
        ValueError: If lengths differ, or a number is not finite.
    """

    tokens: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    name: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    edited: Sequence[bool] = ()
    edit: Literal["delete", "insert"] | None = None

    def __post_init__(self):
        lengths = {name: len(values) for name, values in self.series.items()}
        if self.edit is not None:
            lengths["edited"] = len(self.edited)
        for name, length in lengths.items():
            if length != len(self.tokens):
                raise ValueError(f"`{name}` has {length} entries for {len(self.tokens)} tokens.")
        for name, values in self.series.items():
            for token, value in zip(self.tokens, values, strict=True):
                if value is not None and not math.isfinite(value):
                    raise ValueError(
                        f"the {name} of the token {token!r} is {value}; a token without a {name} has None."
                    )

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def pieces(self) -> list[Shown]:
        """The tokens as they are shown, in order. Those without a text of their own are shown with the one before, or,
        at the beginning, with the one after."""
        starts = [i for i, token in enumerate(self.tokens) if token]
        if not starts:
            return []
        stops = [*starts[1:], len(self.tokens)]
        return [
            Shown(self.tokens[start], start if i else 0, stop)
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]

    def mean(self, name: str, piece: Shown) -> float | None:
        """The mean of a series over the tokens of a piece: what it is coloured by."""
        values = [value for value in self.series[name][piece.start : piece.stop] if value is not None]
        return sum(values) / len(values) if values else None

    def is_edited(self, piece: Shown) -> bool:
        return self.edit is not None and any(self.edited[piece.start : piece.stop])


@dataclass(frozen=True)
class ScoredRow:
    """Texts that belong together, such as both sides of an edit, or one text as two models see it.

    Args:
        name (`str`):
            Its heading.
        prompt (`str`):
            What stands before the texts.
        texts (`Sequence[ScoredText]`):
            The texts.
        step (`int`, *optional*):
            The training step at which they were sampled.
    """

    name: str
    prompt: str
    texts: Sequence[ScoredText]
    step: int | None = None

    @property
    def columns(self) -> int:
        """How many texts stand side by side where there is room."""
        return len(self.texts) if len(self.texts) < 4 else 2


def compact(prompt: str) -> str:
    """A prompt without a dialogue's blank lines, which would only take space."""
    return re.sub(r"\n{2,}", "\n", prompt.strip())


def shown_blanks(text: str) -> str:
    """A token's text with the white space visible that is not between words: line breaks, tabs, and tokens of nothing
    else."""
    if not text.strip(" "):
        return "␣" * len(text)
    return text.replace("\n", "↵\n").replace("\t", "⇥\t")


def split_blank(text: str) -> tuple[str, str]:
    """The blanks that a word begins with, and the word. They stay plain, or a line break would strand their colour."""
    word = text.lstrip(" ")
    return text[: len(text) - len(word)], word


def numbers_text(numbers: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:+.3f}" for name, value in numbers.items()]
