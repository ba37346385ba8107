"""Marked characters: what token scores say of the characters of a text, and how well that fits what people marked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..utils.statistics import best_threshold


# Thresholds that are tried: quantiles of the scores of all characters.
_CANDIDATES = 200


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


def character_f1(text: MarkedText, thresholds: np.ndarray) -> np.ndarray:
    """F1 of the characters that score below each of T thresholds, shape (T,): 1 where none is marked and none is wrong,
    0 where only one of these holds (SemEval-2021 task 5, Pavlopoulos et al., 2021)."""
    marked = text.scores < thresholds[:, None]
    sizes = marked.sum(1) + text.wrong.sum()
    return np.where(sizes == 0, 1.0, 2 * (marked & text.wrong).sum(1) / np.maximum(sizes, 1))


def best_span_threshold(texts: Sequence[MarkedText]) -> float:
    """The threshold with the highest mean [`character_f1`]; of equal ones the lowest. NaN without a scored character.

    It is the middle between two scores that are quantiles of all, or lies above them all.
    """
    scores = np.concatenate([np.zeros(0), *(text.scores for text in texts)])
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return float("nan")
    chosen = np.quantile(scores, np.linspace(0, 1, _CANDIDATES), method="lower")
    return best_threshold(lambda thresholds: np.sum([character_f1(text, thresholds) for text in texts], axis=0), chosen)
