"""Marked characters: what token scores say of the characters of a text, and how well that fits what people marked."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..utils.statistics import threshold_candidates


# Thresholds that are tried: quantiles of the scores of all characters.
_CANDIDATES = 200
# Margins that are tried, evenly spaced up to this quantile of how far characters are above the lowest of their text.
_MARGINS, _WIDEST = 20, 0.95


class SpanThreshold(NamedTuple):
    """Which characters of a text are called wrong: those that score below both limits.

    Annotators mark what is worst in a text. A text where much is bad has a lower limit for that, so the second one goes
    with the text.

    Args:
        score (`float`):
            A limit for all texts.
        margin (`float`, *optional*, defaults to infinity):
            How far above the lowest score of a text its own limit is. More than 0; infinity is none.
    """

    score: float
    margin: float = math.inf


class MarkedText(NamedTuple):
    """The C characters of a text.

    Args:
        scores (`np.ndarray`):
            Their scores. Shape (C,).
        wrong (`np.ndarray`):
            Which of them are marked as wrong. Shape (C,).
    """

    scores: np.ndarray
    wrong: np.ndarray


def marked_text(tokens: Sequence[Sequence[int]], scores: Sequence[float], spans: Sequence[Sequence[int]]) -> MarkedText:
    """Spreads the scores of tokens over the characters that they stand for.

    A word of several tokens has the score of its last: a model that reads from left to right knows the word there. What
    stands between two tokens, such as the space before a word, has the higher of their scores, so that it is marked
    where both are. What is in no token and not between two is never marked.

    Args:
        tokens (`Sequence[Sequence[int]]`):
            `[start, end, inside]` of each token: its characters, without the white space at their edges, and 1 if it
            goes on with the word of the token before it. Where `start` and `end` are equal it stands for none.
        scores (`Sequence[float]`):
            The score of each token.
        spans (`Sequence[Sequence[int]]`):
            `[start, end)` characters that are wrong.
    """
    words: list[list[float]] = []
    for (start, end, inside), score in zip(tokens, scores, strict=True):
        if start >= end:
            continue
        if inside and words:
            words[-1][1:] = end, score
        else:
            words.append([start, end, score])
    ends = [end for _, end, _ in words] + [end for _, end in spans]
    length = int(max(ends, default=0))
    values, wrong = np.full(length, np.inf), np.zeros(length, dtype=bool)
    for before, word in zip([None, *words], words, strict=False):
        if before is not None:
            values[int(before[1]) : int(word[0])] = max(before[2], word[2])
        values[int(word[0]) : int(word[1])] = word[2]
    for span in spans:
        wrong[slice(*span)] = True
    return MarkedText(values, wrong)


def character_f1(text: MarkedText, thresholds: np.ndarray, margin: float | np.ndarray = math.inf) -> np.ndarray:
    """F1 of the characters that each of T thresholds with a margin marks, see [`SpanThreshold`], shape (T,), or, for M
    margins of shape (M, 1), (M, T): 1 where none is marked and none is wrong, 0 where only one of these holds
    (SemEval-2021 task 5, Pavlopoulos et al., 2021)."""
    order = np.argsort(text.scores, kind="stable")
    scores = text.scores[order]
    lowest = scores[0] if len(scores) else math.inf
    marked = np.searchsorted(scores, np.minimum(thresholds, lowest + margin))  # how many score below
    found = np.concatenate([[0], np.cumsum(text.wrong[order])])[marked]
    sizes = marked + text.wrong.sum()
    return np.where(sizes == 0, 1.0, 2 * found / np.maximum(sizes, 1))


def best_span_threshold(texts: Sequence[MarkedText]) -> SpanThreshold:
    """The [`SpanThreshold`] with the highest mean [`character_f1`]; of equal ones the one with the largest margin, then
    with the lowest score. NaN without a scored character.

    Its score is the middle between two scores that are quantiles of all, or lies above them all.
    """
    finite = [text.scores[np.isfinite(text.scores)] for text in texts]
    finite = [scores for scores in finite if len(scores)]
    if not finite:
        return SpanThreshold(math.nan)
    chosen = np.quantile(np.concatenate(finite), np.linspace(0, 1, _CANDIDATES), method="lower")
    widest = np.quantile(np.concatenate([scores - scores.min() for scores in finite]), _WIDEST)
    margins = np.array([math.inf, *(widest * np.arange(_MARGINS, 0, -1) / _MARGINS if widest > 0 else [])])
    thresholds = threshold_candidates(chosen)
    f1 = np.zeros((len(margins), len(thresholds)))
    for text in texts:
        f1 += character_f1(text, thresholds, margins[:, None])
    margin, threshold = np.unravel_index(np.argmax(f1), f1.shape)
    return SpanThreshold(float(thresholds[threshold]), float(margins[margin]))
